"""Accuracy, dynamics and ablation of the paper: their figures against the same runs made without them."""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import federation_cases
import numpy as np
import pytest
import torch
from rich.console import Console
from scipy.stats import ttest_1samp

from clients import training
from clients.batches import tokenize
from clients.tasks import load_task, subset
from clients.worker import load_worker
from fedkron.adapters import adapted_layers, adapter_layout, count_parameters
from fedkron.base import TaskModel
from fedkron.errors import TaskError
from fedkron.settings import run_config
from simulations.paper import ablation, accuracy, dynamics
from simulations.paper.study.adapters import COMPARED, OURS, REFERENCE
from simulations.paper.study.cases import CASES, SHARED, cases_of
from simulations.paper.study.centralised import train_alone
from simulations.paper.study.course import WINDOW, smoothed, steps_until
from simulations.paper.study.federation import federate
from simulations.paper.study.jobs import CENTRALISED, FEDERATED, Job, Outcome, together
from simulations.paper.study.running import Plan, Result, finished, run
from simulations.paper.study.sizes import ABOVE_CHANCE, FULL, QUICK, Size, plan_for
from simulations.paper.study.summary import summarize
from simulations.paper.tasks import TASKS, task_sources
from simulations.study.data import TEST, VALIDATION
from simulations.study.journal import Journal
from simulations.study.workload import Workload

SILENT = Console(file=io.StringIO())
NODES = 4


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the five tasks, tiny ones."""
    folder = tmp_path_factory.mktemp("paper")
    for number, name in enumerate(TASKS):
        federation_cases.write_choices(folder / name, seed=number)
    return folder


@pytest.fixture
def sources(data: Path) -> dict[str, str]:
    return {name: source for name, source in task_sources(data).items() if name in ABOVE_CHANCE}


@pytest.fixture
def load(tiny_bert: Path) -> Workload:
    return Workload(
        tasks=(),
        clients=1,
        rounds=2,
        train_texts=20,
        test_texts=16,
        batch_size=8,
        max_length=16,
        base=str(tiny_bert),
    )


# ---------------------------------------------------------------- jobs


def test_centralised_training_is_the_nodes_own_code_and_is_watched_without_a_change(
    load: Workload, sources: Mapping[str, str]
) -> None:
    job = Job(OURS, CENTRALISED, replace(load, tasks=(sources["piqa"],)), 3, 1e-2, TEST)
    found = train_alone(job)

    settings = job.settings(job.workload.tasks, "unused")
    assert settings.train.truncation_side == "left"
    task = subset(load_task(sources["piqa"]), 20, 16, 3)
    worker = load_worker(load.base, settings.adapter, "cpu", "left")
    texts, test = (tokenize(part, worker.tokenizer, 16) for part in (task.train, task.test))
    torch.manual_seed(3)
    for _, layer in adapted_layers(worker.adapted):
        layer.reset_factors()
    model = TaskModel(worker.adapted, 1)
    last = training.train(model, texts, replace(settings.train, epochs=2), worker.pad_id, 3)
    measured = training.evaluate(model, test, worker.pad_id)

    assert found.tasks == ("piqa",)
    assert found.accuracy[-1] == (measured.accuracy,)
    assert found.loss[-1] == (measured.loss,)
    (steps,) = found.steps
    assert len(found.accuracy) == 2
    assert len(steps) == 2 * 3  # 20 texts in batches of 8
    # The mean of an epoch weights a batch by its size; which one is the small one depends on the order.
    weights = [np.roll((4, 8, 8), shift) for shift in range(3)]
    assert any(last == pytest.approx(np.average(steps[3:], weights=weight)) for weight in weights)
    assert replace(train_alone(job), seconds=0) == replace(found, seconds=0)


def test_federations_are_real_runs_with_shares_of_the_texts(
    load: Workload, sources: Mapping[str, str], tmp_path: Path
) -> None:
    (shared,) = cases_of(load, sources, [SHARED], ABOVE_CHANCE)
    (half,) = shared.workloads
    assert (half.clients, half.train_texts) == (NODES, 10)
    job = Job(REFERENCE, shared.way, half, 0, 1e-2, TEST)
    found = federate(job)
    config = run_config(job.settings(half.tasks, str(tmp_path)))
    log = federation_cases.federate(config, federation_cases.grid_of(config, NODES)).log
    for ours, figures in zip(found.accuracy, log.rounds, strict=True):
        assert dict(zip(found.tasks, ours, strict=True)) == {
            name: task.accuracy for name, task in figures.tasks.items()
        }
    assert log.settings.adapter.kind == "lora"
    assert all(found.up)
    assert found.steps == ()


# ---------------------------------------------------------------- figures


def outcome(tasks: Mapping[str, float], *, steps: tuple[float, ...] = ()) -> Outcome:
    return Outcome(
        tasks=tuple(tasks),
        accuracy=(tuple(0.0 for _ in tasks), tuple(tasks.values())),
        loss=((1.0,) * len(tasks),) * 2,
        head_only=(0.25,) * len(tasks),
        up=(),
        down=(),
        seconds=1.0,
        steps=(steps,) * len(tasks),
    )


def test_intervals_are_those_of_a_paired_t_test(load: Workload, sources: Mapping[str, str]) -> None:
    ours = [{"piqa": 0.6, "arc_easy": 0.5}, {"piqa": 0.7, "arc_easy": 0.4}]
    theirs = [{"piqa": 0.5, "arc_easy": 0.5}, {"piqa": 0.5, "arc_easy": 0.45}]
    (case,) = cases_of(load, sources, [CENTRALISED], ABOVE_CHANCE)
    runs = {OURS: [*map(outcome, ours)], REFERENCE: [*map(outcome, theirs)]}
    models = {a: load_worker(load.base, a.settings(), "cpu", "left").adapted for a in runs}
    layouts = {adapter: adapter_layout(model, base="") for adapter, model in models.items()}
    rates = {adapter.kind: 1e-3 for adapter in runs}
    line, reference = summarize(Result(case, {}, rates, runs), layouts, REFERENCE)
    pairs = [a[task] - b[task] for a, b in zip(ours, theirs, strict=True) for task in a]
    interval = ttest_1samp(pairs, 0).confidence_interval(0.95)
    assert line.against is not None
    assert line.half is not None
    assert line.against.mean - line.half == pytest.approx(interval.low)
    assert line.against.mean + line.half == pytest.approx(interval.high)
    assert line.accuracy.mean == pytest.approx(0.55)
    assert line.by_task == pytest.approx({"piqa": 0.65, "arc_easy": 0.45})
    assert line.parameters == count_parameters(models[OURS])
    assert (reference.against, reference.traffic) == (None, None)


def test_outcomes_of_several_tasks_make_one() -> None:
    both = together([outcome({"piqa": 0.5}, steps=(1.0,)), outcome({"arc_easy": 0.25}, steps=(2.0,))])
    assert both.tasks == ("piqa", "arc_easy")
    assert both.accuracy == ((0.0, 0.0), (0.5, 0.25))
    assert both.steps == ((1.0,), (2.0,))
    assert (both.up, both.seconds) == ((), 2.0)


def test_steps_until_a_loss_by_hand() -> None:
    losses = [float(value) for value in range(40, 0, -1)]
    curve = smoothed(losses)
    assert curve[0] == pytest.approx(np.mean(losses[:WINDOW]))
    assert curve[-1] == pytest.approx(np.mean(losses[-WINDOW:]))
    assert steps_until(losses, curve[-1]) == 40
    assert steps_until(losses, curve[5]) == WINDOW + 5
    assert steps_until(losses, 0.0) is None


# ---------------------------------------------------------------- studies


def test_a_study_goes_seed_by_seed_and_a_part_of_it_has_figures(
    load: Workload, sources: Mapping[str, str], tmp_path: Path
) -> None:
    cases = cases_of(replace(load, rounds=1), sources, [CENTRALISED, FEDERATED], ["piqa"])
    rates = {OURS.kind: (1e-3, 1e-2), REFERENCE.kind: (1e-3,)}
    plan = Plan(cases, (OURS, REFERENCE), seeds=2, rates=rates, tuning_rounds=1)
    file = tmp_path / "journal.jsonl"
    with ThreadPoolExecutor(1) as executor:
        results = run(plan, Journal(Outcome, file), executor, SILENT)
        written = file.read_text()
        assert run(plan, Journal(Outcome, file), executor, SILENT) == results
    assert file.read_text() == written

    jobs = [json.loads(line)["job"] for line in written.splitlines()]
    order = [(job["way"], job["split"], job["seed"]) for job in jobs]
    tuning = [(CENTRALISED, VALIDATION, 100)] * 2, [(FEDERATED, VALIDATION, 100)] * 2
    runs = [[(CENTRALISED, TEST, seed)] * 4 + [(FEDERATED, TEST, seed)] * 2 for seed in (0, 1)]
    assert order == [*tuning[0], *runs[0][:4], *tuning[1], *runs[0][4:], *runs[1]]

    # Cut off after seed 0 of the first case.
    file.write_text("".join(line + "\n" for line in written.splitlines()[:7]))
    (part,) = finished(plan, Journal(Outcome, file))
    assert part.case.name == CENTRALISED
    assert part.runs[OURS] == results[0].runs[OURS][:1]


@pytest.fixture
def filled(tiny_bert: Path, data: Path, tmp_path: Path) -> list[str]:
    """The options of a quick study whose jobs are done already, in this process."""
    options = argparse.Namespace(rounds=None, seeds=None, tasks=None, texts=None, test_texts=None)
    file = tmp_path / "journal.jsonl"
    with ThreadPoolExecutor(1) as executor:
        for cases, adapters in ((QUICK.cases, QUICK.adapters), ([CENTRALISED], ablation.GRID[:2])):
            size: Size = QUICK
            plan = plan_for(size, str(tiny_bert), task_sources(data), options, cases=cases, adapters=adapters)
            run(plan, Journal(Outcome, file), executor, SILENT)
    return ["--quick", "--data", str(data), "--base", str(tiny_bert), "--resume", str(file)]


def test_commands_print_tables_draw_pictures_and_repeat_nothing(
    filled: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = Path(filled[-1]).read_bytes()
    for command, texts in (
        (accuracy, ("centralised", "federated", "shared", "chance", "head alone", "− LoRA-8")),
        (dynamics, ("epoch 1", "runs that get there")),
        (ablation, ("d_A2", "kB (ecsq)")),
    ):
        pictures = [tmp_path / f"{command.__name__}-{number}.svg" for number in (1, 2)]
        for picture in pictures:
            report = tmp_path / "report.json"
            assert command.main([*filled, "--plot", str(picture), "--json", str(report)]) == 0
            assert json.loads(report.read_text())
        assert command.main([*filled[:-2], "--finished", filled[-1]]) == 0
        assert pictures[0].read_bytes() == pictures[1].read_bytes()
        printed = capsys.readouterr().out
        assert all(text in printed for text in texts)
    assert Path(filled[-1]).read_bytes() == before
    assert accuracy.main([*filled[:-2], "--finished", str(tmp_path / "nothing.jsonl")]) == 1
    assert "has no case yet" in capsys.readouterr().err


def test_missing_data_and_adapters_are_told_before_anything_runs(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(TaskError, match="piqa: There is no task folder"):
        task_sources(tmp_path)
    for command in (accuracy, dynamics, ablation):
        assert command.main(["--quick", "--data", str(tmp_path)]) == 1
        assert "must have all of piqa, hellaswag" in capsys.readouterr().err
    assert accuracy.main(["--quick", "--data", str(data), "--adapters", "KronA"]) == 1
    assert "no adapter 'KronA' at this size: choose from Kron-LoRA, LoRA-8" in capsys.readouterr().err


@pytest.mark.parametrize("size", [*FULL.values(), QUICK])
def test_all_adapters_of_a_size_have_rates_and_a_reference(size: Size) -> None:
    assert REFERENCE in size.adapters
    assert {adapter.kind for adapter in size.adapters} <= set(size.rates)
    assert set(size.cases) <= set(CASES)
    assert set(size.adapters) <= set(COMPARED)
