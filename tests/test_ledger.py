import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from fedkron.errors import RunError
from fedkron.ledger import Ledger, Totals, Transfer, read_ledger, totals, totals_by_round

# Two rounds with two nodes; the sizes are powers of two, so that each sum says what is in it.
TRANSFERS = [
    Transfer(1, "11", "train", "down", 1, 1 << 10, 1 << 20),
    Transfer(1, "12", "train", "down", 2, 2 << 10, 2 << 20),
    Transfer(1, "12", "train", "up", 4, 4 << 10, 4 << 20),
    Transfer(2, "11", "train", "down", 8, 8 << 10, 8 << 20),
    Transfer(2, "11", "train", "up", 16, 16 << 10, 16 << 20),
    Transfer(1, "11", "train", "up", 32, 32 << 10, 32 << 20),  # a late one
    Transfer(2, "12", "evaluate", "up", 0, 64 << 10, 0),
]


def written(folder: Path) -> Path:
    path = folder / "run" / "ledger.jsonl"
    ledger = Ledger(path)
    for transfer in TRANSFERS:
        ledger.record(transfer)
    return path


def test_totals_add_up_each_direction_by_itself() -> None:
    assert totals(TRANSFERS) == Totals(
        payload_down=1 + 2 + 8,
        payload_up=4 + 16 + 32,
        message_down=(1 + 2 + 8) << 10,
        message_up=(4 + 16 + 32 + 64) << 10,
        baseline=63 << 20,
    )


def test_totals_by_round_are_in_the_order_of_rounds_and_add_up_to_the_totals() -> None:
    by_round = totals_by_round(reversed(TRANSFERS))
    assert list(by_round) == [1, 2]
    assert by_round[1] == Totals(1 + 2, 4 + 32, (1 + 2) << 10, (4 + 32) << 10, (1 + 2 + 4 + 32) << 20)
    assert by_round[2] == Totals(8, 16, 8 << 10, (16 + 64) << 10, (8 + 16) << 20)


def test_the_factor_compares_the_baseline_with_whole_messages_both_ways() -> None:
    cost = totals(TRANSFERS)
    assert cost.messages == 127 << 10
    assert cost.factor == (63 << 20) / (127 << 10)


def test_nothing_transferred_costs_nothing_and_has_no_factor() -> None:
    assert totals([]) == Totals()
    assert math.isnan(totals([]).factor)
    assert totals_by_round([]) == {}


def test_what_was_recorded_is_read_back_in_order(tmp_path: Path) -> None:
    assert read_ledger(written(tmp_path)) == TRANSFERS


def test_each_transfer_is_in_the_file_as_soon_as_it_is_recorded(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    assert read_ledger(tmp_path / "ledger.jsonl") == []
    for count, transfer in enumerate(TRANSFERS, start=1):
        ledger.record(transfer)
        assert read_ledger(tmp_path / "ledger.jsonl") == TRANSFERS[:count] == ledger.transfers


def test_a_ledger_without_a_file_keeps_its_transfers_in_memory() -> None:
    ledger = Ledger()
    ledger.record(TRANSFERS[0])
    assert ledger.transfers == TRANSFERS[:1]


def test_the_file_is_as_specified(tmp_path: Path) -> None:
    header, *rows = [json.loads(line) for line in written(tmp_path).read_text().splitlines()]
    assert header == {"format": "fedkron-ledger", "version": 1}
    assert rows[2] == {
        "round": 1,
        "node": "12",
        "phase": "train",
        "direction": "up",
        "payload_bytes": 4,
        "message_bytes": 4 << 10,
        "baseline_bytes": 4 << 20,
    }


def test_wherever_a_running_ledger_is_cut_off_only_the_unfinished_line_is_left_out(tmp_path: Path) -> None:
    path = written(tmp_path)
    content = path.read_bytes()
    for end in range(len(content), content.index(b"\n"), -3):
        path.write_bytes(content[:end])
        assert read_ledger(path) == TRANSFERS[: content[:end].count(b"\n") - 1]


def row(**changes: Any) -> str:  # noqa: ANN401
    return json.dumps(asdict(TRANSFERS[0]) | changes)


HEADER = '{"format": "fedkron-ledger", "version": 1}'


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "is damaged, or not a ledger"),
        (["a,b"], "is damaged, or not a ledger"),
        (["[]"], "is damaged, or not a ledger"),
        (["{}"], "is not a ledger: its format is None"),
        (['{"format": "other", "version": 1}'], "is not a ledger: its format is 'other'"),
        (['{"format": "fedkron-ledger"}'], "is damaged"),
        (['{"format": "fedkron-ledger", "version": 2}'], "ledger version 2, known here is 1"),
        ([row()], "is not a ledger"),
        ([HEADER, "{"], "is damaged"),
        ([HEADER, row(), "", row()], "is damaged"),
        ([HEADER, "[]"], "is damaged"),
        ([HEADER, "5"], "is damaged"),
        ([HEADER, "[" * 100_000], "is damaged"),
        ([HEADER, HEADER], "is damaged"),
        ([HEADER, row(color="red")], "is damaged.*color"),
        ([HEADER, row().replace("payload_bytes", "payload")], "is damaged.*payload"),
        ([HEADER, row(direction="sideways")], "sideways.* is not a transfer"),
        ([HEADER, row(direction=["up"])], "is not a transfer"),
        ([HEADER, row(message_bytes="1024")], "is not a transfer"),
        ([HEADER, row(message_bytes=1.5)], "is not a transfer"),
        ([HEADER, row(baseline_bytes=-1)], "is not a transfer"),
        ([HEADER, row(round=True)], "is not a transfer"),
        ([HEADER, row(node=11)], "is not a transfer"),
        ([HEADER, row(phase=None)], "is not a transfer"),
    ],
)
def test_a_damaged_or_foreign_file_is_refused_by_name(tmp_path: Path, lines: list[str], message: str) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_text("".join(f"{line}\n" for line in lines))
    with pytest.raises(RunError, match=f"{path}.*{message}"):
        read_ledger(path)


@pytest.mark.parametrize("damage", [lambda b: b"\xff" + b, lambda b: b.replace(b"train", b"tr\x80in")])
def test_bytes_that_are_not_text_are_refused(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = written(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(RunError, match="is damaged"):
        read_ledger(path)


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=f"no ledger at {tmp_path / 'none'}: No such file"):
        read_ledger(tmp_path / "none")
