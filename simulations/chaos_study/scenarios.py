"""Faults on a real federation. Each strikes when something is seen to happen, never after a time."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from fedkron.deploy.local import LINK
from fedkron.errors import FedKronError, RunError
from fedkron.rundir import ADAPTER
from fedkron.runlog import RunLog, read_run
from fedkron.settings import Settings
from simulations.chaos_study.reference import TRAIN, Fate, Fates, reference_state, same_bits, saved_state
from simulations.chaos_study.stage import MARK, Stage, left_over, stage
from simulations.chaos_study.tiny import TASKS
from simulations.chaos_study.verdict import Findings, Verdict, corrupt_files, failures_of

NODES = len(TASKS)
VICTIM = "node0"
STRUCK_ROUND = 2


def tiny_settings(tiny: Path, output: Path, name: str, **changes: object) -> Settings:
    """A run on the tiny base; `output` gets its folder."""
    config = {
        "base": str(tiny / "base"),
        "tasks": ",".join(str(tiny / task) for task in TASKS),
        "output-dir": str(output),
        "run-name": name,
        "device": "cpu",
        "num-server-rounds": 2,
        "adapter.rank": 2,
        "adapter.d-a2": 4,
        "train.batch-size": 16,
        "train.learning-rate": 0.01,
        "train.max-length": 16,
    }
    return Settings.from_run_config(config | {key.replace("_", "-"): value for key, value in changes.items()})


@dataclass(frozen=True)
class Scenario:
    """A fault, what should come of it, and what to do while the run goes on."""

    name: str
    expected: str
    strike: Callable[[Stage, Findings], None]
    judge: Callable[[Path, Settings, RunLog, Findings], None]
    rounds: int = 2
    round_timeout: float = 3600.0


def perform(scenario: Scenario, tiny: Path, output: Path) -> Verdict:
    """Run a scenario, and look at everything that is left of it."""
    settings = tiny_settings(
        tiny,
        output,
        scenario.name,
        num_server_rounds=scenario.rounds,
        round_timeout=scenario.round_timeout,
    )
    mark = os.environ[MARK] = str(uuid4())
    findings, began = Findings(), time.monotonic()
    try:
        with stage(settings, NODES) as running:
            scenario.strike(running, findings)
            log = ended(running.outcome, findings)
        scenario.judge(tiny, settings, log, findings)
    except FedKronError as error:
        findings.check(False, "", str(error))
    seconds = time.monotonic() - began
    return verdict_of(
        scenario.name, scenario.expected, output / scenario.name, scenario.rounds, findings, mark, seconds
    )


def verdict_of(
    name: str, expected: str, folder: Path, rounds: int, findings: Findings, mark: str, seconds: float
) -> Verdict:
    """What a run folder and the list of processes say about a scenario."""
    corrupt = corrupt_files(folder)
    log = None if corrupt else read_run(folder)
    done = 0 if log is None else len(log.rounds)
    return Verdict(
        name,
        expected,
        tuple(findings.observed),
        tuple(findings.wrong),
        rounds,
        rounds - done,
        len(failures_of(log)),
        corrupt,
        left_over(mark),
        round(seconds, 1),
    )


def ended(outcome: Future[RunLog | None], findings: Findings) -> RunLog:
    """Wait for the end of a run that should be a good one."""
    log = outcome.result()
    if log is None:
        raise RunError("the run wrote nothing")
    findings.note(f"Flower says completed after {len(log.rounds)} rounds")
    return log


def compare(
    tiny: Path, settings: Settings, findings: Findings, fates: Fates, forgets: Iterable[tuple[int, int]] = ()
) -> None:
    """The adapter against that of an undisturbed process in which the nodes fared the same."""
    run = Path(settings.output_dir) / settings.run_name
    twin = tiny_settings(
        tiny,
        tiny / "twins",
        settings.run_name,
        num_server_rounds=settings.num_server_rounds,
    )
    found, right = saved_state(run), reference_state(twin, NODES, fates, forgets)
    findings.check(
        same_bits(found, right),
        "the adapter is that of a calm run, bit for bit",
        f"{run / ADAPTER} is not the adapter that it should be",
    )


def all_answer(node: int, round_: int, phase: str) -> Fate:  # noqa: ARG001
    """Nothing happens."""
    return Fate.ANSWERED


def victims_training(fate: Fate) -> Fates:
    """Something happens to the victim's training in the round that is struck."""
    return lambda node, round_, phase: (
        fate if (node, round_, phase) == (0, STRUCK_ROUND, TRAIN) else Fate.ANSWERED
    )


def check_failures(log: RunLog, findings: Findings, in_struck_round: int) -> None:
    """So many failures are reported, all in the struck round."""
    for round_ in log.rounds:
        wanted = in_struck_round if round_.round == STRUCK_ROUND else 0
        said = f"round {round_.round}: {len(round_.failures)} failures reported"
        if round_.failures:
            said += f" ({'; '.join(sorted(set(round_.failures)))})"
        if wanted or round_.failures:
            findings.check(len(round_.failures) == wanted, said, f"{said}, {wanted} expected")
    last = log.rounds[-1]
    clients = sum(task.clients for task in last.tasks.values())
    findings.check(
        clients == NODES, "all nodes evaluated the last round", f"only {clients} evaluated the last round"
    )


# ---------------------------------------------------------------- a SuperNode dies


def kill_supernode(running: Stage, findings: Findings) -> None:
    running.training(VICTIM, STRUCK_ROUND)
    running.kill(VICTIM)
    findings.note(f"{VICTIM} killed while it trained in round {STRUCK_ROUND}")


def judge_supernode(tiny: Path, settings: Settings, log: RunLog, findings: Findings) -> None:
    round_ = log.rounds[STRUCK_ROUND - 1]
    findings.check(
        0 < len(round_.failures) <= 2,
        f"round {STRUCK_ROUND} reports: {'; '.join(round_.failures)}",
        f"round {STRUCK_ROUND} reports {len(round_.failures)} failures",
    )
    clients = sum(task.clients for task in log.rounds[-1].tasks.values())
    findings.check(clients == NODES, "the node takes part again", "the node did not take part again")
    compare(tiny, settings, findings, victims_training(Fate.LOST), forgets=[(0, STRUCK_ROUND)])


# ---------------------------------------------------------------- the SuperLink dies


def kill_superlink(running: Stage, findings: Findings) -> None:
    running.training(VICTIM, STRUCK_ROUND)
    running.kill(LINK)
    running.until(
        lambda: running.federation.supervisor.deaths(LINK) == 1, "the SuperLink's death was noticed"
    )
    running.until(lambda: running.federation.supervisor.pid(LINK), "the SuperLink was started again")
    findings.note(f"the SuperLink was killed in round {STRUCK_ROUND} and started again on its database")


def judge_superlink(tiny: Path, settings: Settings, log: RunLog, findings: Findings) -> None:
    check_failures(log, findings, 0)
    compare(tiny, settings, findings, all_answer)


# ---------------------------------------------------------------- a client's process dies


def kill_client(running: Stage, findings: Findings) -> None:
    running.training(VICTIM, STRUCK_ROUND).kill()
    findings.note(f"the process that trained for {VICTIM} in round {STRUCK_ROUND} was killed")


def judge_client(tiny: Path, settings: Settings, log: RunLog, findings: Findings) -> None:
    check_failures(log, findings, 1)
    compare(tiny, settings, findings, victims_training(Fate.LOST))


# ---------------------------------------------------------------- a client is too slow


def stop_client(running: Stage, findings: Findings) -> None:
    process = running.training(VICTIM, STRUCK_ROUND)
    process.send_signal(signal.SIGSTOP)
    running.until(lambda: running.sent(STRUCK_ROUND, "evaluate"), "the server gave up waiting")
    process.send_signal(signal.SIGCONT)
    log = running.federation.logs / f"{VICTIM}.log"
    sent = "Sending: train message"
    running.until(
        lambda: log.read_text(errors="replace").count(sent) == STRUCK_ROUND, "the late reply was sent"
    )
    findings.note(f"{VICTIM} answered round {STRUCK_ROUND} when its evaluation had begun")


def judge_slow(tiny: Path, settings: Settings, log: RunLog, findings: Findings) -> None:
    check_failures(log, findings, 1)
    late = [t for t in log.transfers if (t.round, t.phase, t.direction) == (STRUCK_ROUND, TRAIN, "up")]
    findings.check(len(late) == NODES - 1, "the late reply was never counted", "the late reply was counted")
    compare(tiny, settings, findings, victims_training(Fate.LATE))


REAL = (
    Scenario(
        "supernode-killed",
        "one failure reported, the round goes on with the others, the node comes back by itself",
        kill_supernode,
        judge_supernode,
        rounds=3,
    ),
    Scenario(
        "superlink-killed",
        "nothing lost: the run goes on when the SuperLink is back",
        kill_superlink,
        judge_superlink,
    ),
    Scenario(
        "client-killed",
        "one failure reported, the round goes on with the others",
        kill_client,
        judge_client,
    ),
    Scenario(
        "client-too-slow",
        "one failure reported, its late reply counts nowhere",
        stop_client,
        judge_slow,
        rounds=3,
        round_timeout=30.0,
    ),
)
