"""Reports of a ledger without a run folder, and of the sockets beside it, by what the command prints."""

import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from fedkron.cli import main
from fedkron.ledger import Ledger, Transfer
from fedkron.report_ledger import kilobytes
from fedkron.socketlog import Crossing, SocketLog

Capture = pytest.CaptureFixture[str]

TRANSFERS = [
    Transfer(2, "77", "train", "up", 40_000, 5_000, 600, 47_000, 400_000),
    Transfer(1, "5", "train", "down", 30_000, 0, 700, 31_500, 300_000),
    Transfer(1, "77", "train", "down", 30_000, 0, 700, 31_500, 300_000),
    Transfer(1, "5", "train", "up", 20_000, 0, 100, 21_000, 200_000),
    Transfer(2, "77", "evaluate", "up", 0, 0, 0, 900, 0),
]


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    path = tmp_path / "ledger.jsonl"
    file = Ledger(path)
    for transfer in TRANSFERS:
        file.record(transfer)
    return path


def socket_log(path: Path, *sizes: tuple[int, int]) -> Path:
    log = SocketLog(path, listen="a:1", to="b:2")
    for number, (up, down) in enumerate(sizes, start=1):
        log.record(Crossing(number, 1.0, 2.0, up, down))
    log.close()
    return path


def figures_of(capsys: Capture, *arguments: object) -> dict:
    capsys.readouterr()
    assert main(["report", "--json", *map(str, arguments)]) == 0
    return json.loads(capsys.readouterr().out)


def shown(capsys: Capture, *arguments: object) -> list[str]:
    """Lines that are not empty, with single spaces."""
    capsys.readouterr()
    assert main(["report", *map(str, arguments)]) == 0
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines() if line.strip()]


def summed(transfers: Iterable[Transfer]) -> dict[str, dict[str, int]]:
    """Sections by adding up, one plain loop."""
    found = {d: dict.fromkeys(("factors", "head", "headers", "envelope"), 0) for d in ("down", "up")}
    for t in transfers:
        own = found[t.direction]
        own["factors"] += t.factor_bytes
        own["head"] += t.head_bytes
        own["headers"] += t.header_bytes
        own["envelope"] += t.message_bytes - t.factor_bytes - t.head_bytes - t.header_bytes
    return found


def test_figures_are_sums_by_section_direction_round_and_node(ledger: Path, capsys: Capture) -> None:
    figures = figures_of(capsys, ledger)
    assert figures["ledger"] == str(ledger)
    assert figures["sections"] == summed(TRANSFERS)
    assert figures["total_bytes"]["message_up"] == 47_000 + 21_000 + 900
    assert figures["total_bytes"]["factor"] == 1_200_000 / (2 * 31_500 + 68_900)
    assert [entry["round"] for entry in figures["rounds"]] == [1, 2]
    for entry in figures["rounds"]:
        assert entry["sections"] == summed(t for t in TRANSFERS if t.round == entry["round"])
    assert [entry["node"] for entry in figures["nodes"]] == ["5", "77"]
    for entry in figures["nodes"]:
        own = [t for t in TRANSFERS if t.node == entry["node"]]
        assert entry["sections"] == summed(own)
        assert entry["total_bytes"]["payload_up"] == sum(t.payload_bytes for t in own if t.direction == "up")


def test_tables_show_a_line_for_each_direction_of_each_round_and_node(ledger: Path, capsys: Capture) -> None:
    lines = shown(capsys, ledger)
    rows = [line for line in lines if {"down", "up"} & set(line.split())]
    assert [row.split()[0] for row in rows] == ["1", "up", "2", "up", "5", "up", "77", "up", "all", "up"]
    groups = (
        *([t for t in TRANSFERS if t.round == round_] for round_ in (1, 2)),
        *([t for t in TRANSFERS if t.node == node] for node in ("5", "77")),
        TRANSFERS,
    )
    for number, group in enumerate(groups):
        for row, direction in zip(rows[2 * number :][:2], ("down", "up"), strict=True):
            own = [t for t in group if t.direction == direction]
            sizes = [*summed(own)[direction].values(), sum(t.message_bytes for t in own)]
            expected = " ".join([direction, str(len(own)), *map(kilobytes, sizes)])
            assert row.endswith(expected)
    assert "9.1×" in lines[-1]


def test_long_node_ids_fit_into_eighty_columns(tmp_path: Path, capsys: Capture) -> None:
    file = Ledger(tmp_path / "ledger.jsonl")
    node = "18446744073709551615"
    file.record(Transfer(1, node, "train", "down", 123_456_789, 123_456, 123_456, 124_000_000, 0))
    lines = shown(capsys, tmp_path / "ledger.jsonl")
    row = next(line for line in lines if node in line)
    assert row == f"{node} down 1 123.5 MB 123 kB 123 kB 296 kB 124.0 MB"


def test_an_empty_ledger_says_so(tmp_path: Path, capsys: Capture) -> None:
    Ledger(tmp_path / "ledger.jsonl")
    assert shown(capsys, tmp_path / "ledger.jsonl") == ["No message has been sent."]
    figures = figures_of(capsys, tmp_path / "ledger.jsonl")
    assert (figures["rounds"], figures["nodes"], figures["total_bytes"]["factor"]) == ([], [], None)


def test_sockets_stand_beside_messages_and_payloads(ledger: Path, tmp_path: Path, capsys: Capture) -> None:
    logs = [
        socket_log(tmp_path / "one.jsonl", (60_000, 40_000), (10, 20)),
        socket_log(tmp_path / "two.jsonl", (12_000, 30_000)),
    ]
    figures = figures_of(capsys, ledger, "--sockets", *logs)
    assert figures["sockets"] == {
        "down": {"payload": 61_400, "message": 63_000, "socket": 70_020},
        "up": {"payload": 65_700, "message": 68_900, "socket": 72_010},
        "logs": [
            {"file": str(logs[0]), "up": 60_010, "down": 40_020, "connections": 2},
            {"file": str(logs[1]), "up": 12_000, "down": 30_000, "connections": 1},
        ],
    }
    lines = shown(capsys, ledger, "--sockets", *logs)
    after = lines[lines.index("From payload to socket") :]
    assert "down 61.4 kB 63.0 kB 70.0 kB 7.0 kB (+11.1%)" in after
    assert "up 65.7 kB 68.9 kB 72.0 kB 3.1 kB (+4.5%)" in after
    assert "two.jsonl 30.0 kB down, 12.0 kB up" in after
    assert not any("carried less" in line for line in after)


def test_sockets_that_carried_too_little_are_remarked(ledger: Path, tmp_path: Path, capsys: Capture) -> None:
    log = socket_log(tmp_path / "one.jsonl", (68_899, 70_000))
    assert "carried less than the messages" in " ".join(shown(capsys, ledger, "--sockets", log))


@pytest.mark.parametrize("kind", ["ledger", "sockets"])
def test_a_file_of_the_other_kind_is_refused(
    ledger: Path, tmp_path: Path, capsys: Capture, kind: str
) -> None:
    log = socket_log(tmp_path / "one.jsonl", (1, 1))
    arguments = [log] if kind == "ledger" else [ledger, "--sockets", ledger]
    assert main(["report", *map(str, arguments)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"is not a {'ledger' if kind == 'ledger' else 'socket log'}: its format is" in captured.err
