"""How far a run is, as a person sees it: read off a real run, cut short at several points."""

import io
from dataclasses import replace

from command_cases import Finished
from rich.console import Console

from fedkron.commands.progress import LineProgress, TerminalProgress
from fedkron.runlog import RunLog, read_run


def cut_short(log: RunLog, messages: int, rounds: int) -> RunLog:
    return replace(log, transfers=log.transfers[:messages], rounds=log.rounds[:rounds])


def test_lines_tell_each_round_once(finished: Finished) -> None:
    log = read_run(finished.run)
    output = io.StringIO()
    progress = LineProgress(output, rounds=2)
    for messages, rounds in ((0, 0), (3, 0), (8, 1), (11, 1), (16, 2), (16, 2)):
        progress.update(cut_short(log, messages, rounds))
    told = [line for line in output.getvalue().splitlines() if line.startswith("round")]
    assert [line.split(":")[0] for line in told] == ["round 1/2", "round 2/2"]
    assert f"accuracy {log.rounds[1].accuracy:.3f}" in told[1]


def test_the_bar_tells_round_phase_and_replies(finished: Finished) -> None:
    log = read_run(finished.run)
    # A round of two nodes is two messages down and two up for training, then the same for evaluation.
    assert [(t.phase, t.direction) for t in log.transfers[:4]] == [("train", "down")] * 2 + [
        ("train", "up")
    ] * 2
    shown = []
    for messages, rounds in ((0, 0), (2, 0), (3, 0), (7, 0), (16, 2)):
        output = io.StringIO()
        bar = TerminalProgress(Console(file=output, force_terminal=True, width=120), rounds=2)
        with bar:
            bar.update(cut_short(log, messages, rounds))
        shown.append(output.getvalue())
    for text, words in zip(
        shown,
        (
            "loading the base",
            "round 1: train 0/2",
            "round 1: train 1/2",
            "round 1: evaluate 1/2",
            "round 2: evaluate 2/2",
        ),
        strict=True,
    ):
        assert words in text
    assert f"accuracy {log.rounds[1].accuracy:.3f}" in shown[-1]
