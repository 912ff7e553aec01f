"""The study of aggregations: its figures against those of the same runs made and counted without it."""

from __future__ import annotations

import io
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import federation_cases
import numpy as np
import pytest
from flwr.app import Message
from rich.console import Console

from fedkron.errors import ConfigError, RunError
from fedkron.settings import PartitionSettings, run_config
from simulations import aggregation
from simulations.aggregation import FULL, QUICK, Study, run
from simulations.aggregation_study.federation import federate
from simulations.aggregation_study.jobs import Case, Job, Outcome, outcome_of
from simulations.aggregation_study.plot import plot
from simulations.aggregation_study.summary import Result, summarize
from simulations.aggregation_study.tables import show
from simulations.aggregation_study.ways import KRON_LORA, LORA, LORA_REFERENCE, REFERENCE, WAYS, Way
from simulations.study.data import TEST, VALIDATION
from simulations.study.journal import Journal
from simulations.study.outcome import Outcome as AnyOutcome
from simulations.study.pool import processes, run_jobs
from simulations.study.workload import Workload

SILENT = Console(file=io.StringIO())
NODES = 3


@pytest.fixture
def local(tiny_bert: Path, tasks: Path) -> Case:
    """Three nodes with two tasks, each node with a head of its own."""
    workload = Workload(
        tasks=(str(tasks / "animals"), str(tasks / "colours")),
        clients=NODES,
        rounds=2,
        train_texts=16,
        test_texts=12,
        batch_size=8,
        max_length=16,
        base=str(tiny_bert),
    )
    return Case("local", workload)


@pytest.fixture
def shared(local: Case, tasks: Path) -> Case:
    """Three nodes with parts of one task and one head."""
    workload = replace(local.workload, tasks=(str(tasks / "colours"),))
    return Case("shared", workload, "red,green,blue", PartitionSettings("dirichlet", alpha=0.5))


def job_of(way: str, case: Case) -> Job:
    return Job(WAYS[way], case, 0, 1e-2, TEST)


# ---------------------------------------------------------------- federations


@pytest.mark.parametrize(
    ("way", "heads"),
    [
        *((way, "local") for way in WAYS if way != LORA_REFERENCE.name),
        *((way, "shared") for way in ("merged_exact", "alternating")),
    ],
)
def test_figures_are_those_of_the_run_and_bytes_those_on_the_wire(
    way: str, heads: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    job = job_of(way, request.getfixturevalue(heads))
    found = federate(job)
    config = run_config(job.settings(job.case.workload.tasks, str(tmp_path)))
    run = federation_cases.federate(config, federation_cases.grid_of(config, NODES))

    rounds = run.log.rounds
    assert run.log.settings.aggregation == job.way.aggregation
    assert found.tasks == tuple(rounds[0].tasks)
    assert found.accuracy == tuple(tuple(t.accuracy for t in figures.tasks.values()) for figures in rounds)
    assert found.head_only == tuple(t.head_only_accuracy for t in rounds[-1].tasks.values())
    assert found.projection_error == tuple(figures.projection_error for figures in rounds)
    for ours, replies in zip(found.loss, of_each_round(run.grid.up), strict=True):
        measured = [reply.content for reply in replies if reply.metadata.message_type == "evaluate"]
        assert len(measured) == (NODES if heads == "local" else 1)
        for task, loss in zip(found.tasks, ours, strict=True):
            losses = [c["metrics"]["loss"] for c in measured if c["origin"]["task"] == task]
            assert loss == pytest.approx(np.mean(losses))
    assert found.up == tuple(map(bytes_of, of_each_round(run.grid.up)))
    assert found.down == tuple(map(bytes_of, of_each_round(run.grid.down)))


def of_each_round(messages: list[Message]) -> tuple[list[Message], list[Message]]:
    """Two rounds have as many messages each; in the first, nodes may be asked who they are."""
    questions = [message for message in messages if message.metadata.message_type == "query"]
    others = [message for message in messages if message.metadata.message_type != "query"]
    half = len(others) // 2
    return [*questions, *others[:half]], others[half:]


def bytes_of(messages: list[Message]) -> int:
    return sum(map(federation_cases.wire_size, messages))


def test_an_aggregation_that_does_not_exist_ends_the_study(local: Case) -> None:
    job = replace(job_of("factorwise", local), way=Way("sum", KRON_LORA, "sum"))
    with ThreadPoolExecutor(1) as executor, pytest.raises(ConfigError, match="'sum'"):
        run_jobs([job], outcome_of, Journal(Outcome), executor, lambda *_: None)


# ---------------------------------------------------------------- figures


def outcome(accuracy: list[float], error: float | None, *, up: int = 60, down: int = 90) -> Outcome:
    """One task, of which one of six clients measured these accuracies, one a round."""
    return Outcome(
        tasks=("one",),
        accuracy=tuple((value,) for value in accuracy),
        loss=tuple((2 - value,) for value in accuracy),
        head_only=(0.5,),
        up=(up,) * len(accuracy),
        down=(down,) * len(accuracy),
        seconds=1.0,
        projection_error=(error,) * len(accuracy),
    )


def test_figures_of_a_way_by_hand(shared: Case) -> None:
    merged = WAYS["merged"]
    runs = {
        REFERENCE: [outcome([0.1, 0.5, 0.6], None), outcome([0.1, 0.6, 0.7], None)],
        merged: [
            outcome([0.2, 0.6, 0.7], 0.1, up=30, down=180),
            replace(outcome([0.2, 0.6, 0.7], 0.3, up=30, down=180), projection_error=(0.2, 0.4, None)),
        ],
    }
    tried = {way: {1e-3: outcome([0.6], None), 1e-2: outcome([0.5], None)} for way in runs}
    case = replace(shared, workload=replace(shared.workload, clients=6))
    reference, line = summarize(Result(case, tried, runs))
    assert (reference.way, line.way, line.learning_rate) == (REFERENCE, merged, 1e-3)
    assert reference.accuracy.mean == pytest.approx((0.55 + 0.65) / 2)
    assert reference.accuracy.deviation == pytest.approx(0.1 / 2**0.5)
    assert line.accuracy.mean == pytest.approx(0.65)
    assert line.loss.mean == pytest.approx(1.35)
    # Paired differences are 0.1 and 0: half their distance is the standard error of their mean.
    difference = line.against["factorwise"]
    assert difference is not None
    assert (difference.mean, difference.standard_error) == pytest.approx((0.05, 0.05))
    assert line.against["lora-factorwise"] is None
    assert reference.against["factorwise"] is None
    assert reference.projection_error is None
    assert line.projection_error == pytest.approx((3 * 0.1 + 0.2 + 0.4) / 5)
    assert line.curve == pytest.approx((0.2, 0.6, 0.7))
    assert (line.traffic.up, line.traffic.down) == (5, 30)
    assert line.times is not None
    assert (line.times.up, line.times.down, line.times.both) == (0.5, 2, 1.4)


# ---------------------------------------------------------------- studies


def test_a_study_runs_seed_by_seed_to_tables_and_plot_and_repeats_nothing(
    local: Case, shared: Case, tmp_path: Path
) -> None:
    rates = {KRON_LORA: (3e-3, 1e-2), LORA: (1e-3,)}
    study = Study((local, shared), ("lora-factorwise", "factorwise"), seeds=2, rates=rates, tuning_rounds=1)
    file = tmp_path / "journal.jsonl"
    with ThreadPoolExecutor(1) as executor:
        results = run(study, Journal(Outcome, file), executor, SILENT)
        written = file.read_text()
        assert run(study, Journal(Outcome, file), executor, SILENT) == results
    assert file.read_text() == written

    jobs = [json.loads(line)["job"] for line in written.splitlines()]
    ways = ("factorwise", "lora-factorwise")
    tuning = [(100, VALIDATION, "factorwise")] * 2 + [(100, VALIDATION, "lora-factorwise")]
    runs = [(seed, TEST, way) for seed in (0, 1) for way in ways]
    order = [(case, *job) for case in ("local", "shared") for job in tuning + runs]
    assert [(j["case"]["name"], j["seed"], j["split"], j["way"]["name"]) for j in jobs] == order
    assert {j["case"]["workload"]["rounds"] for j in jobs if j["split"] == VALIDATION} == {1}

    console = Console(file=io.StringIO(), width=200)
    lines = {result.case.name: summarize(result) for result in results}
    for result in results:
        assert set(result.runs) == {WAYS[way] for way in ways}
        assert all(job["learning_rate"] in result.tried[WAYS[job["way"]["name"]]] for job in jobs)
        show(result, lines[result.case.name], console)
    assert all(text in console.file.getvalue() for text in ("local", "shared", "− lora-factorwise"))
    for name in ("plot.svg", "again.svg", "plot.png"):
        plot(lines, tmp_path / name)
    assert (tmp_path / "plot.svg").read_bytes() == (tmp_path / "again.svg").read_bytes()
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_another_process_finds_the_same_and_the_journal_gives_it_back(local: Case, tmp_path: Path) -> None:
    file, job = tmp_path / "journal.jsonl", job_of("merged", local)
    with processes(1) as executor:
        run_jobs([job], outcome_of, Journal(Outcome, file), executor, lambda *_: None)
    read = Journal[Job, Outcome](Outcome, file).outcome(job)
    assert replace(read, seconds=0) == replace(federate(job), seconds=0)
    with pytest.raises(RunError, match="not a journal of this study"):
        Journal(AnyOutcome, file)


@pytest.mark.parametrize("study", [FULL, QUICK])
def test_all_ways_of_a_case_see_the_same_data_and_have_a_reference(study: Study) -> None:
    assert {way.kind for way in study.chosen} <= set(study.rates)
    assert REFERENCE in study.chosen
    for case in study.cases:
        settings = [
            Job(way, case, 0, 1e-3, TEST).settings(case.workload.tasks, "runs") for way in study.chosen
        ]
        same = {replace(s, aggregation="factorwise", adapter=settings[0].adapter) for s in settings}
        assert len(same) == 1
        assert (settings[0].fraction_evaluate == 1) == (settings[0].head == "local")


def test_the_quick_study_refuses_a_workload_that_it_does_not_have(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert aggregation.main(["--quick", "--workloads", "iid"]) == 1
    assert "--quick has no workload 'iid': choose from tasks, dirichlet" in capsys.readouterr().err
