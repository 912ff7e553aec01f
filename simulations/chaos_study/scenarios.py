"""Faults on a real federation. Each strikes when something is seen to happen, never after a time."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import wait
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from fedkron.commands.run_settings import resumed_settings
from fedkron.deploy.local import EXEC, LINK
from fedkron.errors import FedKronError, RunError
from fedkron.runlog import RunLog, read_run
from fedkron.settings import Settings
from simulations.chaos_study.reference import TRAIN, Fate, Fates, reference_state, same_bits, saved_state
from simulations.chaos_study.stage import MARK, Outcome, Stage, left_over, stage
from simulations.chaos_study.tiny import TASKS
from simulations.chaos_study.verdict import Findings, Verdict, verdict_of

NODES = len(TASKS)
VICTIM = "node0"


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
class Case:
    """One performance of a scenario: its run, the round that is struck, and what was found so far."""

    tiny: Path
    settings: Settings
    struck: int
    findings: Findings

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.settings.output_dir) / self.settings.run_name


@dataclass(frozen=True)
class Scenario:
    """A fault, what should come of it, and what to do while the run goes on."""

    name: str
    expected: str
    strike: Callable[[Stage, Case], None]
    judge: Callable[[Case, Outcome], None]
    rounds: int = 2
    struck: int = 2
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
    case, began = Case(tiny, settings, scenario.struck, Findings()), time.monotonic()
    try:
        with stage(settings, NODES) as running:
            scenario.strike(running, case)
            wait([running.outcome])
        scenario.judge(case, running.outcome)
    except FedKronError as error:
        case.findings.fail(str(error))
    return verdict_of(
        scenario.name,
        scenario.expected,
        case.folder,
        scenario.rounds,
        case.findings,
        orphans=left_over(mark),
        seconds=time.monotonic() - began,
    )


def completed(case: Case, outcome: Outcome) -> RunLog:
    """The log of a run that should have had a good end."""
    log = outcome.result()
    if log is None:
        raise RunError("the run wrote nothing")
    case.findings.note(f"Flower says completed after {len(log.rounds)} rounds")
    return log


def check_everyone(case: Case, log: RunLog) -> None:
    """All nodes take part in the last round."""
    last = sum(task.clients for task in log.rounds[-1].tasks.values())
    case.findings.check(
        last == NODES, "all nodes take part in the end", f"only {last} of {NODES} take part in the end"
    )


def compare(case: Case, fates: Fates) -> None:
    """The adapter against that of a process in which nothing happens, but the nodes fare the same."""
    rounds = case.settings.num_server_rounds
    twin = tiny_settings(case.tiny, case.tiny / "twins", case.settings.run_name, num_server_rounds=rounds)
    case.findings.check(
        same_bits(saved_state(case.folder), reference_state(twin, NODES, fates)),
        "the adapter is the right one, bit for bit",
        "the adapter is not what the answers should have made of it",
    )


def all_answer(node: int, round_: int, phase: str) -> Fate:  # noqa: ARG001
    """Nothing happens."""
    return Fate.ANSWERED


def victims_training(case: Case, fate: Fate) -> Fates:
    """Something happens to the victim's training in the round that is struck."""
    return lambda node, round_, phase: (
        fate if (node, round_, phase) == (0, case.struck, TRAIN) else Fate.ANSWERED
    )


def check_failures(case: Case, log: RunLog, *wanted: int) -> None:
    """So many failures are reported in the struck round, and none in the others."""
    for round_ in log.rounds:
        reasons = ", ".join(sorted({reason.partition(": ")[2] or reason for reason in round_.failures}))
        said = f"round {round_.round} reports {len(round_.failures)} failures ({reasons})"
        if round_.round == case.struck:
            case.findings.check(len(round_.failures) in wanted, said, f"{said}, expected {wanted}")
        elif round_.failures:
            case.findings.fail(f"{said}, expected none")


# ---------------------------------------------------------------- a SuperNode dies


def kill_supernode(running: Stage, case: Case) -> None:
    """While it trains."""
    running.training(VICTIM, case.struck)
    running.kill(VICTIM)
    case.findings.note(f"{VICTIM} killed while it trained in round {case.struck}")


def judge_supernode(case: Case, outcome: Outcome) -> None:
    """It has its head and its residuals back from its disk, and may miss the evaluation."""
    log = completed(case, outcome)
    check_failures(case, log, 1, 2)
    check_everyone(case, log)
    compare(case, victims_training(case, Fate.LOST))


# ---------------------------------------------------------------- the SuperLink dies


def kill_superlink(running: Stage, case: Case) -> None:
    """While a node trains."""
    running.training(VICTIM, case.struck)
    running.kill(LINK)
    supervisor = running.federation.supervisor
    running.until(lambda: supervisor.deaths(LINK) == 1, "the SuperLink's death was noticed")
    running.until(lambda: supervisor.pid(LINK), "the SuperLink was started again")
    case.findings.note(f"SuperLink killed in round {case.struck} and started again")


def judge_superlink(case: Case, outcome: Outcome) -> None:
    """Nobody noticed."""
    log = completed(case, outcome)
    check_failures(case, log, 0)
    check_everyone(case, log)
    compare(case, all_answer)


# ---------------------------------------------------------------- a client's process dies


def kill_client(running: Stage, case: Case) -> None:
    """The process that a SuperNode starts for a message, not the SuperNode."""
    running.training(VICTIM, case.struck).kill()
    case.findings.note(f"the process that trained for {VICTIM} in round {case.struck} killed")


def judge_client(case: Case, outcome: Outcome) -> None:
    """The node goes on as if it had never got the message."""
    log = completed(case, outcome)
    check_failures(case, log, 1)
    check_everyone(case, log)
    compare(case, victims_training(case, Fate.LOST))


# ---------------------------------------------------------------- a client is too slow


def stop_client(running: Stage, case: Case) -> None:
    """Until the server has gone on without it."""
    process = running.training(VICTIM, case.struck)
    process.send_signal(signal.SIGSTOP)
    running.until(lambda: running.sent(case.struck, "evaluate"), "the server gave up waiting")
    process.send_signal(signal.SIGCONT)
    log = running.federation.logs / f"{VICTIM}.log"

    def answered() -> bool:
        return log.read_text(encoding="utf-8", errors="replace").count("Sending: train") == case.struck

    running.until(answered, "the late reply was sent")
    case.findings.note(f"{VICTIM} answered round {case.struck} when its evaluation had begun")


def judge_slow(case: Case, outcome: Outcome) -> None:
    """The node has trained, and the server has not heard of it.

    It has then to catch up, and on a busy machine may be too late once more: what counts is what the ledger
    says that the server has counted.
    """
    log = completed(case, outcome)
    rounds = range(1, case.settings.num_server_rounds + 1)
    counted = {r: _trainings(log, r, "up") for r in rounds}
    missing = _trainings(log, case.struck, "down") - counted[case.struck]
    case.findings.check(
        len(missing) == 1, "its late reply counts nowhere", f"{len(missing)} answers are missing, not 1"
    )
    failures = log.rounds[case.struck - 1].failures
    case.findings.check(failures, f"reported: {failures[:1]}", "nothing is reported")
    late = {r for r in rounds if missing - counted[r]}
    case.findings.note(f"it was too late in round {', '.join(map(str, sorted(late)))}")

    def fates(node: int, round_: int, phase: str) -> Fate:
        return Fate.LATE if node == 0 and phase == TRAIN and round_ in late else Fate.ANSWERED

    compare(case, fates)


def _trainings(log: RunLog, round_: int, direction: str) -> set[str]:
    """The nodes whose training of a round is in the ledger."""
    return {t.node for t in log.transfers if (t.round, t.phase, t.direction) == (round_, TRAIN, direction)}


# ---------------------------------------------------------------- the server's program dies


def kill_server(running: Stage, case: Case) -> None:
    """While a node trains; the run is gone on with on the same federation."""
    running.training(VICTIM, case.struck)
    program = running.process(EXEC, "flwr-serverapp")
    if program is None:
        raise RunError("the server's program is not there")
    program.kill()
    case.findings.note(f"the server's program killed in round {case.struck}")
    error = running.outcome.exception()
    failed = isinstance(error, RunError) and "finished:failed" in str(error)
    case.findings.check(failed, "Flower says failed", f"the run did not end as failed: {error!r}")
    settings, _ = resumed_settings(case.folder, [])
    running.run_again(settings)
    case.findings.note("gone on with (--resume)")


def judge_server(case: Case, outcome: Outcome) -> None:  # noqa: ARG001
    """As if nothing had happened."""
    log = read_run(case.folder)
    rounds = [round_.round for round_ in log.rounds]
    right = log.outcome == "completed" and rounds == list(range(1, case.settings.num_server_rounds + 1))
    case.findings.check(right, f"completed with rounds {rounds}", f"{log.outcome} with rounds {rounds}")
    check_everyone(case, log)
    compare(case, all_answer)


SUPERLINK_KILLED = Scenario(
    "superlink-killed",
    "nothing lost: the run goes on when the SuperLink is back",
    kill_superlink,
    judge_superlink,
)
SCENARIOS = (
    Scenario(
        "supernode-killed",
        "a failure reported, the round goes on without the node, which comes back by itself",
        kill_supernode,
        judge_supernode,
        rounds=3,
    ),
    SUPERLINK_KILLED,
    Scenario(
        "client-killed",
        "one failure reported, the round goes on without it",
        kill_client,
        judge_client,
    ),
    Scenario(
        "client-too-slow",
        "reported as a failure, the late reply counts nowhere",
        stop_client,
        judge_slow,
        rounds=3,
        round_timeout=45.0,
    ),
    Scenario(
        "server-killed",
        "the run fails; gone on with by --resume, it ends as if nothing had happened",
        kill_server,
        judge_server,
        rounds=3,
    ),
)
