"""How far a run is, as a person or a program sees it: a real run's folder that grows line by line."""

import fcntl
import io
import json
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_cases import Finished
from rich.console import Console

from fedkron.commands.progress import (
    JsonProgress,
    LineProgress,
    NoProgress,
    Planned,
    Progress,
    TerminalProgress,
    progress_for,
)
from fedkron.follow import Follower
from fedkron.ledger import totals
from fedkron.pace import clock, seconds_left
from fedkron.rundir import AUDIT, LEDGER, OUTCOME, ROUNDS, SETTINGS
from fedkron.runlog import read_run

MESSAGES = 16
"""Of the run: two rounds of training and evaluation on two nodes, down and up."""


class Replay:
    """A copy of a finished run's folder that is written anew, as its server wrote it."""

    def __init__(self, finished: Path, folder: Path) -> None:
        self.folder = folder
        self._finished = finished
        self._written = dict.fromkeys((LEDGER, ROUNDS, AUDIT), 0)
        folder.mkdir()
        shutil.copy(finished / SETTINGS, folder)

    def grow(self, *, messages: int = 0, rounds: int = 0) -> None:
        """Have so many messages and finished rounds; one byte of the next line is on its way."""
        self._append(LEDGER, 1 + messages)
        self._append(ROUNDS, rounds)

    def refuse(self, reason: str) -> None:
        with (self.folder / AUDIT).open("a") as file:
            entry = {
                "event": "refused",
                "fields": {"round": 1, "phase": "train", "node": "7", "reason": reason},
            }
            file.write(json.dumps(entry) + "\n")

    def end(self) -> None:
        shutil.copy(self._finished / OUTCOME, self.folder)

    def _append(self, name: str, lines: int) -> None:
        content = b"".join((self._finished / name).read_bytes().splitlines(keepends=True)[:lines]) + b"{"
        whole = (self._finished / name).read_bytes()
        with (self.folder / name).open("r+b" if (self.folder / name).exists() else "xb") as file:
            file.write(content if lines < len(whole.splitlines()) else whole)


@pytest.fixture
def replay(finished: Finished, tmp_path: Path) -> Replay:
    return Replay(finished.run, tmp_path / "run")


def planned(run: Path) -> Planned:
    return Planned("my-base", ("animals", "quiz"), 2, 2, run)


def test_a_follower_sees_what_a_whole_reading_sees_at_every_line(replay: Replay) -> None:
    follower = Follower(replay.folder)
    for messages in range(MESSAGES + 1):
        replay.grow(messages=messages, rounds=messages // 8)
        standing, log = follower.look(), read_run(replay.folder)
        assert standing.rounds == log.rounds
        whole = totals(log.transfers)
        assert standing.bytes.messages == whole.messages
        assert (standing.bytes.message_up, standing.bytes.baseline) == (whole.message_up, whole.baseline)
        assert {r: t.messages for r, t in standing.bytes_by_round.items()} == {
            r: t.messages for r, t in log.bytes_by_round.items()
        }
        now = [
            t
            for t in log.transfers
            if (t.round, t.phase) == (log.transfers[-1].round, log.transfers[-1].phase)
        ]
        if standing.phase is None:
            assert not log.transfers
        else:
            assert (standing.phase.round, standing.phase.name) == (now[-1].round, now[-1].phase)
            assert standing.phase.asked == sum(t.direction == "down" for t in now)
            assert standing.phase.replied == sum(t.direction == "up" for t in now)
        assert standing.outcome is None
    replay.end()
    assert follower.look().outcome == "completed"


def test_what_a_run_had_before_it_was_gone_on_with_is_known_but_no_news(replay: Replay) -> None:
    replay.grow(messages=8, rounds=1)
    replay.refuse("of the first attempt")
    follower, output = Follower(replay.folder), io.StringIO()
    progress = LineProgress(output, planned(replay.folder))
    standing = follower.look()
    assert (standing.phase, standing.refused, len(standing.rounds)) == (None, (), 1)
    progress.update(standing)
    assert output.getvalue() == ""
    replay.grow(messages=MESSAGES, rounds=2)
    progress.update(follower.look())
    assert [line.split(":")[0] for line in output.getvalue().splitlines()] == ["round 2/2"]


def test_rounds_that_are_taken_back_are_seen_as_taken_back(replay: Replay) -> None:
    replay.grow(messages=MESSAGES, rounds=2)
    follower = Follower(replay.folder)
    first = (replay.folder / ROUNDS).read_bytes().splitlines(keepends=True)[0]
    (replay.folder / "new").write_bytes(first)
    (replay.folder / "new").replace(replay.folder / ROUNDS)
    assert [entry.round for entry in follower.look().rounds] == [1]


def told_by(progress: Progress, replay: Replay) -> None:
    """Show a progress a run from start to end, with one refusal."""
    follower = Follower(replay.folder)
    with progress:
        for messages, rounds in ((0, 0), (3, 0), (8, 1), (11, 1), (MESSAGES, 2), (MESSAGES, 2)):
            replay.grow(messages=messages, rounds=rounds)
            if messages == 11:
                replay.refuse("upload of node 7: not [finite]")
            progress.update(follower.look())


def test_lines_tell_what_runs_each_round_once_and_refusals(replay: Replay, finished: Finished) -> None:
    output = io.StringIO()
    told_by(LineProgress(output, planned(replay.folder)), replay)
    start, first, refusal, second = output.getvalue().splitlines()
    assert start.startswith("starting 2 rounds on 2 nodes; base my-base; tasks animals, quiz; run folder ")
    assert start.endswith(str(replay.folder))
    log = read_run(finished.run)
    accuracy, loss = log.rounds[0].accuracy, log.rounds[0].train_loss
    assert first.startswith(f"round 1/2: accuracy {accuracy:.3f}, loss {loss:.3f}, ")
    assert f"{log.bytes_by_round[1].factor:.1f}× smaller than LoRA-8 fp32" in first
    assert first.endswith(" left")
    assert refusal == "refused: round 1: upload of node 7: not [finite]"
    assert second.startswith(f"round 2/2: accuracy {log.rounds[1].accuracy:.3f}")
    assert not second.endswith("left")


def test_programs_get_an_object_per_line(replay: Replay, finished: Finished) -> None:
    output = io.StringIO()
    told_by(JsonProgress(output, planned(replay.folder)), replay)
    start, first, refusal, second = map(json.loads, output.getvalue().splitlines())
    assert start["event"] == "started"
    assert (start["nodes"], start["rounds"], start["tasks"]) == (2, 2, ["animals", "quiz"])
    log = read_run(finished.run)
    for line, entry in zip((first, second), log.rounds, strict=True):
        cost = log.bytes_by_round[entry.round]
        assert (line["event"], line["round"]) == ("round", entry.round)
        assert (line["accuracy"], line["train_loss"]) == (entry.accuracy, entry.train_loss)
        assert (line["bytes_up"], line["bytes_down"]) == (cost.message_up, cost.message_down)
    assert second["seconds_left"] == 0
    assert refusal == {"event": "refused", "reason": "round 1: upload of node 7: not [finite]"}


def test_quiet_says_nothing(replay: Replay, capfd: pytest.CaptureFixture[str]) -> None:
    told_by(NoProgress(), replay)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("environment", "kind"),
    [
        ({}, LineProgress),
        ({"FORCE_COLOR": "1"}, TerminalProgress),
        ({"FORCE_COLOR": "1", "TERM": "dumb"}, LineProgress),
    ],
)
def test_what_cannot_be_painted_over_gets_lines(
    environment: dict[str, str], kind: type[Progress], finished: Finished
) -> None:
    console = Console(file=io.StringIO(), _environ={"TERM": "xterm", **environment})
    assert isinstance(progress_for(console, read_run(finished.run).settings, 2), kind)


SHOW = """
import sys, time
from pathlib import Path
from rich.console import Console
from fedkron.commands.progress import TerminalProgress, progress_for, Planned
from fedkron.follow import Follower
from fedkron.runlog import read_run
folder = Path(sys.argv[1])
console = Console(stderr=True)
progress = progress_for(console, read_run(folder).settings, 2)
assert isinstance(progress, TerminalProgress)
follower = Follower(folder)
with progress:
    while True:
        standing = follower.look()
        progress.update(standing)
        if standing.outcome:
            break
        time.sleep(0.02)
"""
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """A program that writes its standard error to a pseudo-terminal of a given width."""

    def __init__(self, program: str, *arguments: object, columns: int, **environment: str) -> None:
        self._primary, secondary = pty.openpty()
        fcntl.ioctl(secondary, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS")}
        self._process = subprocess.Popen(
            [sys.executable, "-c", program, *map(str, arguments)],
            stderr=secondary,
            env={**kept, "TERM": "xterm-256color", **environment},
        )
        os.close(secondary)
        os.set_blocking(self._primary, False)
        self.output = ""

    def wait_for(self, words: str) -> None:
        """Read until the words are there, colours and all that put aside."""
        deadline = time.monotonic() + 20
        while words not in ESCAPES.sub("", self.output):
            assert time.monotonic() < deadline, (words, self.output)
            self._read()

    def end(self) -> str:
        assert self._process.wait(timeout=20) == 0
        self._read()
        os.close(self._primary)
        return self.output

    def _read(self) -> None:
        try:
            self.output += os.read(self._primary, 1 << 16).decode()
        except BlockingIOError:
            time.sleep(0.02)
        except OSError:  # the other side is closed
            pass


def screens(output: str) -> Iterator[str]:
    """The lines that were painted, without what positions and colours them."""
    return (line for line in ESCAPES.sub("", output).replace("\r", "\n").split("\n") if line.strip())


@pytest.mark.parametrize(("columns", "environment"), [(60, {"NO_COLOR": "1"}), (120, {})])
def test_a_terminal_shows_a_run_that_grows(
    replay: Replay, finished: Finished, columns: int, environment: dict[str, str]
) -> None:
    log = read_run(finished.run)
    terminal = Terminal(SHOW, replay.folder, columns=columns, **environment)
    terminal.wait_for("starting the federation")
    for messages, rounds, words in (
        (2, 0, "training 0/2"),
        (3, 0, "training 1/2"),
        (7, 0, "evaluating 1/2"),
        (8, 1, f"round 1: accuracy {log.rounds[0].accuracy:.3f}, loss {log.rounds[0].train_loss:.3f}"),
        (10, 1, "round 2/2"),
        (MESSAGES, 2, "finishing"),
    ):
        replay.grow(messages=messages, rounds=rounds)
        if messages == 7:
            replay.refuse("upload of node 7: not [finite]")
        terminal.wait_for(words)
    replay.end()
    output = terminal.end()
    assert "refused round 1: upload of node 7: not [finite]" in ESCAPES.sub("", output)
    assert max(map(len, screens(output))) <= columns
    coloured = re.findall(r"\x1b\[[0-9;]*3\dm|\x1b\[[0-9;]*38;", output)
    assert bool(coloured) is ("NO_COLOR" not in environment)
    assert f"{totals(log.transfers).factor:.1f}× smaller than LoRA-8 fp32" in ESCAPES.sub("", output)


@pytest.mark.parametrize(
    ("ends", "rounds", "since", "left"),
    [
        ((), 5, 3.0, None),
        ((30.0,), 3, 10.0, 50.0),  # only the first is known: 30 - 10, and 30
        ((30.0, 40.0), 4, 0.0, 20.0),  # the first was slower and does not count
        ((30.0, 40.0, 50.0, 90.0), 6, 4.0, 16.0),  # median of 10, 10, 40
        ((30.0, 40.0), 3, 99.0, 0.0),  # this one takes longer than usual
        ((30.0, 40.0), 2, 1.0, 0.0),
    ],
)
def test_time_left_is_told_from_rounds_after_the_first(
    ends: tuple[float, ...], rounds: int, since: float, left: float | None
) -> None:
    assert seconds_left(ends, rounds, since) == left


def test_a_clock_reads_like_a_clock() -> None:
    assert [clock(seconds) for seconds in (0, 7.4, 59.6, 750, 7500)] == [
        "0:00",
        "0:07",
        "1:00",
        "12:30",
        "2:05:00",
    ]
