import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from fedkron.errors import RunError
from fedkron.ledger import (
    Ledger,
    Sections,
    Totals,
    Transfer,
    by_node,
    by_round,
    read_ledger,
    sections,
    totals,
    totals_by_round,
)

# Two rounds with two nodes; the sizes are powers of two, so that each sum says what is in it.
TRANSFERS = [
    Transfer(1, "11", "train", "down", 1, 1 << 7, 1 << 14, 1 << 30, 1 << 40),
    Transfer(1, "12", "train", "down", 2, 2 << 7, 2 << 14, 2 << 30, 2 << 40),
    Transfer(1, "12", "train", "up", 4, 4 << 7, 4 << 14, 4 << 30, 4 << 40),
    Transfer(2, "11", "train", "down", 8, 8 << 7, 8 << 14, 8 << 30, 8 << 40),
    Transfer(2, "11", "train", "up", 16, 16 << 7, 16 << 14, 16 << 30, 16 << 40),
    Transfer(1, "11", "train", "up", 32, 32 << 7, 32 << 14, 32 << 30, 32 << 40),  # a late one
    Transfer(2, "12", "evaluate", "up", 0, 0, 0, 64 << 30, 0),
]
PAYLOAD = 1 + (1 << 7) + (1 << 14)
"""Each payload is a multiple of this."""


def written(folder: Path) -> Path:
    path = folder / "run" / "ledger.jsonl"
    ledger = Ledger(path)
    for transfer in TRANSFERS:
        ledger.record(transfer)
    return path


def test_totals_add_up_each_direction_by_itself() -> None:
    assert totals(TRANSFERS) == Totals(
        payload_down=(1 + 2 + 8) * PAYLOAD,
        payload_up=(4 + 16 + 32) * PAYLOAD,
        message_down=(1 + 2 + 8) << 30,
        message_up=(4 + 16 + 32 + 64) << 30,
        baseline=63 << 40,
    )


def test_totals_by_round_are_in_the_order_of_rounds_and_add_up_to_the_totals() -> None:
    by_round = totals_by_round(reversed(TRANSFERS))
    assert list(by_round) == [1, 2]
    assert by_round[1] == Totals(
        (1 + 2) * PAYLOAD, (4 + 32) * PAYLOAD, (1 + 2) << 30, (4 + 32) << 30, (1 + 2 + 4 + 32) << 40
    )
    assert by_round[2] == Totals(8 * PAYLOAD, 16 * PAYLOAD, 8 << 30, (16 + 64) << 30, (8 + 16) << 40)


def test_transfers_are_grouped_by_node_and_by_round_in_their_order() -> None:
    nodes = by_node(reversed(TRANSFERS))
    assert list(nodes) == ["11", "12"]
    assert list(by_round(reversed(TRANSFERS))) == [1, 2]
    assert {t for group in by_round(TRANSFERS).values() for t in group} == set(TRANSFERS)
    assert totals(nodes["11"]) == Totals(
        (1 + 8) * PAYLOAD, (16 + 32) * PAYLOAD, (1 + 8) << 30, (16 + 32) << 30, (1 + 8 + 16 + 32) << 40
    )
    assert totals(nodes["12"]) == Totals(2 * PAYLOAD, 4 * PAYLOAD, 2 << 30, (4 + 64) << 30, (2 + 4) << 40)


def test_sections_say_what_the_bytes_of_each_direction_are_for() -> None:
    found = sections(TRANSFERS)
    assert list(found) == ["down", "up"]
    down, up = 1 + 2 + 8, 4 + 16 + 32
    assert found["down"] == Sections(down, down << 7, down << 14, (down << 30) - down * PAYLOAD)
    assert found["up"] == Sections(up, up << 7, up << 14, ((up + 64) << 30) - up * PAYLOAD)


def test_the_sections_of_a_direction_are_its_messages_and_without_the_envelope_its_payloads() -> None:
    cost = totals(TRANSFERS)
    for direction, section in sections(TRANSFERS).items():
        parts = asdict(section)
        assert sum(parts.values()) == getattr(cost, f"message_{direction}")
        del parts["envelope"]
        assert sum(parts.values()) == getattr(cost, f"payload_{direction}")


def test_the_factor_compares_the_baseline_with_whole_messages_both_ways() -> None:
    cost = totals(TRANSFERS)
    assert cost.messages == 127 << 30
    assert cost.factor == (63 << 40) / (127 << 30)


def test_nothing_transferred_costs_nothing_and_has_no_factor() -> None:
    assert totals([]) == Totals()
    assert math.isnan(totals([]).factor)
    assert totals_by_round([]) == by_node([]) == {}
    assert sections([]) == {"down": Sections(), "up": Sections()}


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
    assert header == {"format": "fedkron-ledger", "version": 2}
    assert rows[2] == {
        "round": 1,
        "node": "12",
        "phase": "train",
        "direction": "up",
        "factor_bytes": 4,
        "head_bytes": 4 << 7,
        "header_bytes": 4 << 14,
        "message_bytes": 4 << 30,
        "baseline_bytes": 4 << 40,
    }


def test_wherever_a_running_ledger_is_cut_off_only_the_unfinished_line_is_left_out(tmp_path: Path) -> None:
    path = written(tmp_path)
    content = path.read_bytes()
    for end in range(len(content), content.index(b"\n"), -3):
        path.write_bytes(content[:end])
        assert read_ledger(path) == TRANSFERS[: content[:end].count(b"\n") - 1]


def row(**changes: Any) -> str:  # noqa: ANN401
    return json.dumps(asdict(TRANSFERS[0]) | changes)


HEADER = '{"format": "fedkron-ledger", "version": 2}'


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "is damaged, or not a ledger"),
        (["a,b"], "is damaged, or not a ledger"),
        (["[]"], "is damaged, or not a ledger"),
        (["{}"], "is not a ledger: its format is None"),
        (['{"format": "other", "version": 1}'], "is not a ledger: its format is 'other'"),
        (['{"format": "fedkron-ledger"}'], "is damaged"),
        (['{"format": "fedkron-ledger", "version": 1}'], "ledger version 1, known here is 2"),
        ([row()], "is not a ledger"),
        ([HEADER, "{"], "is damaged"),
        ([HEADER, row(), "", row()], "is damaged"),
        ([HEADER, "[]"], "is damaged"),
        ([HEADER, "5"], "is damaged"),
        ([HEADER, "[" * 100_000], "is damaged"),
        ([HEADER, HEADER], "is damaged"),
        ([HEADER, row(color="red")], "is damaged.*color"),
        ([HEADER, row().replace("factor_bytes", "factors")], "is damaged.*factors"),
        ([HEADER, row(direction="sideways")], "sideways.* is not a transfer"),
        ([HEADER, row(direction=["up"])], "is not a transfer"),
        ([HEADER, row(message_bytes="1024")], "is not a transfer"),
        ([HEADER, row(message_bytes=1.5)], "is not a transfer"),
        ([HEADER, row(baseline_bytes=-1)], "is not a transfer"),
        ([HEADER, row(factor_bytes=0.5)], "is not a transfer"),
        ([HEADER, row(head_bytes=-1)], "is not a transfer"),
        ([HEADER, row(header_bytes=None)], "is not a transfer"),
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
