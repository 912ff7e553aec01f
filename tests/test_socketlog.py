import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from fedkron.errors import RunError
from fedkron.socketlog import Crossing, SocketLog, SocketTotals, read_socket_log, socket_totals

# The sizes are powers of two, so that each sum says what is in it.
CROSSINGS = [
    Crossing(1, 1700000000.25, 1700000001.5, 1, 1 << 10),
    Crossing(2, 1700000001.0, 1700000002.0, 2, 2 << 10),
    Crossing(1, 1700000001.5, 1700000003.0, 4, 4 << 10),
    Crossing(3, 1700000002.0, 1700000002.0, 0, 0),
]


def written(folder: Path) -> Path:
    path = folder / "logs" / "sockets.jsonl"
    log = SocketLog(path, listen="127.0.0.1:9000", to="[::1]:8000")
    for crossing in CROSSINGS:
        log.record(crossing)
    log.close()
    return path


def test_totals_add_up_each_direction_and_count_connections_once() -> None:
    assert socket_totals(iter(CROSSINGS)) == SocketTotals(up=7, down=7 << 10, connections=3)
    assert socket_totals([]) == SocketTotals(0, 0, 0)


def test_what_was_recorded_is_read_back_in_order(tmp_path: Path) -> None:
    assert read_socket_log(written(tmp_path)) == CROSSINGS


def test_the_file_is_as_specified(tmp_path: Path) -> None:
    header, first, *_ = [json.loads(line) for line in written(tmp_path).read_text().splitlines()]
    assert header == {
        "format": "fedkron-sockets",
        "version": 1,
        "listen": "127.0.0.1:9000",
        "to": "[::1]:8000",
    }
    assert first == {"connection": 1, "start": 1700000000.25, "end": 1700000001.5, "up": 1, "down": 1024}


def test_each_crossing_is_in_the_file_as_soon_as_it_is_recorded(tmp_path: Path) -> None:
    log = SocketLog(tmp_path / "log", listen="a:1", to="b:2")
    assert read_socket_log(tmp_path / "log") == []
    for count, crossing in enumerate(CROSSINGS, start=1):
        log.record(crossing)
        assert read_socket_log(tmp_path / "log") == CROSSINGS[:count]
    log.close()


def test_wherever_a_running_log_is_cut_off_only_the_unfinished_line_is_left_out(tmp_path: Path) -> None:
    path = written(tmp_path)
    content = path.read_bytes()
    for end in range(len(content), content.index(b"\n"), -3):
        path.write_bytes(content[:end])
        assert read_socket_log(path) == CROSSINGS[: content[:end].count(b"\n") - 1]


def row(**changes: Any) -> str:  # noqa: ANN401
    return json.dumps(asdict(CROSSINGS[0]) | changes)


HEADER = '{"format": "fedkron-sockets", "version": 1, "listen": "a:1", "to": "b:2"}'


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "is damaged, or not a socket log"),
        (["a,b"], "is damaged, or not a socket log"),
        (["[]"], "is damaged, or not a socket log"),
        (["{}"], "is not a socket log: its format is None"),
        (
            ['{"format": "fedkron-ledger", "version": 2}'],
            "is not a socket log: its format is 'fedkron-ledger'",
        ),
        (['{"format": "fedkron-sockets"}'], "is damaged"),
        (['{"format": "fedkron-sockets", "version": 2}'], "socket log version 2, known here is 1"),
        ([HEADER, "{"], "is damaged"),
        ([HEADER, row(), "", row()], "is damaged"),
        ([HEADER, "5"], "is damaged"),
        ([HEADER, "[" * 100_000], "is damaged"),
        ([HEADER, HEADER], "is damaged"),
        ([HEADER, row(color="red")], "is damaged.*color"),
        ([HEADER, row().replace('"up"', '"upwards"')], "is damaged.*upwards"),
        ([HEADER, row(up=-1)], "is not a crossing"),
        ([HEADER, row(down=1.5)], "is not a crossing"),
        ([HEADER, row(connection=True)], "is not a crossing"),
        ([HEADER, row(start="now")], "is not a crossing"),
        ([HEADER, row(end=None)], "is not a crossing"),
        ([HEADER, row(end=float("inf"))], "is not a crossing"),
    ],
)
def test_a_damaged_or_foreign_file_is_refused_by_name(tmp_path: Path, lines: list[str], message: str) -> None:
    path = tmp_path / "sockets.jsonl"
    path.write_text("".join(f"{line}\n" for line in lines))
    with pytest.raises(RunError, match=f"{path}.*{message}"):
        read_socket_log(path)


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=f"no socket log at {tmp_path / 'none'}: No such file"):
        read_socket_log(tmp_path / "none")


def test_a_place_that_cannot_be_written_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=f"cannot write the socket log {tmp_path}: Is a directory"):
        SocketLog(tmp_path, listen="a:1", to="b:2")
