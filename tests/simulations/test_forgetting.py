"""The study of forgetting: sequences of tasks against the same training by hand, without Flower."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import federation_cases
import numpy as np
import pytest
import torch
from federation_cases import write_choices
from rich.console import Console
from scipy import stats

from clients import training
from clients.app import _seed
from clients.batches import tokenize
from clients.node import this_node
from fedkron.adapters import adapter_layout, adapter_state, attach, load_adapter_state
from fedkron.base import TaskModel, load_base
from fedkron.layout import State
from fedkron.settings import Settings, run_config
from simulations.paper import forgetting
from simulations.paper.forgetting import finished, tuning
from simulations.paper.forgetting_study.federation import run
from simulations.paper.forgetting_study.jobs import LOCAL, SHARED, Job, Outcome, Pair, outcome_of
from simulations.paper.forgetting_study.pairs import FULL, QUICK
from simulations.paper.forgetting_study.plot import plot
from simulations.paper.forgetting_study.summary import Figure, figure_of, summarize
from simulations.paper.forgetting_study.tables import show
from simulations.paper.forgetting_study.ways import (
    ALTERNATING,
    FEDERATED,
    FEW,
    JOINT,
    KRON_LORA,
    MERGED_TASKS,
    ONE_MACHINE,
    SEQUENCE,
    Way,
)
from simulations.paper.tasks import TASKS
from simulations.study.data import TEST, VALIDATION
from simulations.study.journal import Journal
from simulations.study.workload import Workload

SILENT = Console(file=io.StringIO())
TWO_NODES = replace(ONE_MACHINE, name="two nodes", clients=2)


@pytest.fixture(scope="module")
def sources(tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two tasks with texts, two with choices."""
    riddles = write_choices(tmp_path_factory.mktemp("more-tasks") / "riddles", seed=9)
    return {name: str(tasks / name) for name in ("animals", "colours", "quiz")} | {"riddles": str(riddles)}


@pytest.fixture
def load(tiny_bert: Path) -> Workload:
    return Workload(
        tasks=("animals", "colours"),
        clients=2,
        rounds=2,
        train_texts=16,
        test_texts=24,
        batch_size=8,
        max_length=16,
        base=str(tiny_bert),
    )


def job_of(way: Way, load: Workload, *, first: int = 0, heads: str = LOCAL, split: str = TEST) -> Job:
    return Job(way, "pair", load, (1, 2, 3, 4), heads, first, 0, 1e-2, split)


# ---------------------------------------------------------------- by hand


class ByHand:
    """The same training as a loop over nodes: weighted means of adapters, heads kept or averaged, too."""

    def __init__(self, job: Job, sources: dict[str, str], folder: Path) -> None:
        self.settings = job.settings(",".join(sources[name] for name in job.load.tasks), str(folder))
        count = 2 * job.way.clients
        self.nodes = [
            this_node({"partition-id": i, "num-partitions": count}, self.settings, 1) for i in range(count)
        ]
        self.base = load_base(self.settings.base)
        torch.manual_seed(job.seed)
        self.backbone = attach(self.base.backbone, self.settings.adapter.spec())
        self.shared = adapter_state(self.backbone)
        self.heads = [TaskModel(self.backbone, len(node.task.labels) or 1).head for node in self.nodes]

    def train(self, task: int, round_: int) -> None:
        trained, weights = [], []
        start = copy.deepcopy(self.heads[0].state_dict())
        for number, node in enumerate(self.nodes):
            if number % 2 != task:
                continue
            model = self.model(number)
            if self.settings.head == SHARED:
                model.head.load_state_dict(start)
            texts = tokenize(node.task.train, self.base.tokenizer, 16)
            training.train(model, texts, self.settings.train, 0, _seed(0, number, round_))
            trained.append(adapter_state(self.backbone))
            weights.append(len(texts))
        self.shared = mean(trained, weights)
        if self.settings.head == SHARED:
            ours = [h.state_dict() for h in self.heads[task::2]]
            averaged = {name: mean([{name: h[name].numpy()} for h in ours], weights)[name] for name in start}
            for head in self.heads:
                head.load_state_dict({name: torch.from_numpy(values) for name, values in averaged.items()})

    def measure(self) -> list[training.Evaluation]:
        return [
            training.evaluate(self.model(number), tokenize(node.task.test, self.base.tokenizer, 16), 0)
            for number, node in enumerate(self.nodes)
        ]

    def model(self, number: int) -> TaskModel:
        model = TaskModel(self.backbone, self.heads[number].out_features)
        model.head = self.heads[number]
        load_adapter_state(self.backbone, self.shared)
        return model


def mean(states: Sequence[State], weights: Sequence[int]) -> State:
    return {
        name: np.average([state[name] for state in states], axis=0, weights=weights).astype(np.float32)
        for name in states[0]
    }


@pytest.mark.parametrize(
    ("way", "heads"), [(ONE_MACHINE, LOCAL), (ONE_MACHINE, SHARED), (TWO_NODES, LOCAL), (TWO_NODES, SHARED)]
)
def test_a_sequence_is_training_on_one_task_and_then_on_the_other(
    way: Way, heads: str, load: Workload, sources: dict[str, str], tmp_path: Path
) -> None:
    first = way.clients - 1  # one order each
    if heads == SHARED:
        load = replace(load, tasks=("quiz", "riddles"))
    job = job_of(way, load, first=first, heads=heads)
    found = run(job, sources)
    assert found.tasks == load.tasks
    assert found.rounds == (1, 2, 3, 4)
    hand = ByHand(job, sources, tmp_path)
    for round_, task in zip(found.rounds, (first, first, 1 - first, 1 - first), strict=True):
        hand.train(task, round_)
        measured = hand.measure()
        for metric in ("accuracy", "loss"):
            of_nodes = [getattr(one, metric) for one in measured]
            wanted = [np.mean(of_nodes[t::2]) for t in (0, 1)]
            assert getattr(found, metric)[round_ - 1] == pytest.approx(wanted, abs=2e-4)


def test_both_at_once_is_a_run_of_the_real_server(
    load: Workload, sources: dict[str, str], tmp_path: Path
) -> None:
    job = job_of(Way("both", KRON_LORA, 8, JOINT, clients=2, codec="ecsq"), load)
    found = run(job, sources)
    config = run_config(job.settings(",".join(sources[name] for name in load.tasks), str(tmp_path)))
    again = federation_cases.federate(config, federation_cases.grid_of(config, 4))
    last = again.log.rounds[-1].tasks
    assert found.rounds == (2,)
    assert found.accuracy == (tuple(last[task].accuracy for task in load.tasks),)
    assert found.head_only == tuple(last[task].head_only_accuracy for task in load.tasks)


def test_alternating_trains_a_factor_a_round_and_sends_less(load: Workload, sources: dict[str, str]) -> None:
    whole, part = (run(job_of(way, load), sources) for way in (FEDERATED, ALTERNATING))
    assert len(whole.up) == len(part.up) == 4
    assert all(less < more for less, more in zip(part.up, whole.up, strict=True))


def test_merged_adapters_by_hand(load: Workload, sources: dict[str, str], tmp_path: Path) -> None:
    job = job_of(replace(MERGED_TASKS, mergings=("mean, 2r",)), load)
    found = run(job, sources)
    assert found.rounds == (2,)
    deltas, heads = [], []
    for task in (0, 1):
        hand = ByHand(job, sources, tmp_path)
        for round_ in (1, 2):
            hand.train(task, round_)
        own = hand.measure()[task]
        assert found.accuracy[0][task] == pytest.approx(own.accuracy)
        assert found.loss[0][task] == pytest.approx(own.loss, abs=2e-4)
        deltas.append(dense(hand))
        heads.append(hand.heads[task])
    base = load_base(str(load.base))
    with torch.no_grad():  # the mean of two products of rank r is one of rank 2r: exact
        for path in deltas[0]:
            base.backbone.get_submodule(path).weight += torch.from_numpy(
                (deltas[0][path] + deltas[1][path]) / 2
            )
    accuracy, loss = found.merged["mean, 2r"]
    for task, node in enumerate(hand.nodes):
        model = TaskModel(base.backbone, heads[task].out_features)
        model.head = heads[task]
        wanted = training.evaluate(model, tokenize(node.task.test, base.tokenizer, 16), 0)
        # The tasks' A differ, so that their products do not add up to one of rank 2r: it comes near.
        assert accuracy[task] == pytest.approx(wanted.accuracy, abs=0.1)
        assert loss[task] == pytest.approx(wanted.loss, rel=0.1)


def dense(hand: ByHand) -> dict[str, np.ndarray]:
    adapter, state = hand.settings.adapter, hand.shared
    return {
        module.path: adapter.alpha
        / adapter.rank
        * np.kron(
            state[module.tensor_name("A")], state[module.tensor_name("B1")] @ state[module.tensor_name("B2")]
        )
        for module in adapter_layout(hand.backbone, "").modules
    }


# ---------------------------------------------------------------- figures


def outcome(*accuracy: tuple[float, float], merged: dict[str, object] | None = None) -> Outcome:
    return Outcome(
        tasks=("animals", "colours"),
        accuracy=accuracy,
        loss=tuple((1 - a, 1 - b) for a, b in accuracy),
        head_only=(0.5, 0.4),
        up=(1,),
        down=(1,),
        seconds=1.0,
        rounds=(2, 4)[-len(accuracy) :],
        merged=merged or {},  # type: ignore[arg-type]
    )


def test_figures_by_hand(load: Workload) -> None:
    pairs = {
        (ONE_MACHINE, 0, 0): outcome((0.9, 0.2), (0.6, 0.8)),
        (ONE_MACHINE, 1, 0): outcome((0.1, 0.7), (0.8, 0.5)),
        (ONE_MACHINE, 0, 1): outcome((0.8, 0.2), (0.7, 0.9)),
        (MERGED_TASKS, 0, 0): outcome((0.9, 0.7), merged={"ties": ((0.8, 0.5), (0.1, 0.6))}),
    }
    done = {
        replace(job_of(way, load, first=first), seed=seed): found
        for (way, first, seed), found in pairs.items()
    }
    lines = {(line.way, line.first): line for line in summarize(done)}
    assert list(lines) == [
        *((ONE_MACHINE.name, first) for first in ("animals", "colours", None)),
        *((MERGED_TASKS.name, task) for task in ("animals", "colours", None)),
        ("merged: ties", None),
    ]
    first = lines[ONE_MACHINE.name, "animals"]
    assert first.drop.mean == pytest.approx((0.3 + 0.1) / 2)
    assert first.rise.mean == pytest.approx((0.3 + 0.1) / 2)
    assert (first.before.mean, first.other.mean, first.drop.seeds) == (
        pytest.approx(0.85),
        pytest.approx(0.85),
        2,
    )
    both = lines[ONE_MACHINE.name, None]
    assert both.drop.mean == pytest.approx(((0.3 + 0.2) / 2 + 0.1) / 2)
    assert both.both.mean == pytest.approx(((0.7 + 0.65) / 2 + 0.8) / 2)
    assert both.against is None
    ties = lines["merged: ties", None]
    assert ties.drop.mean == pytest.approx((0.1 + 0.2) / 2)
    assert ties.rise.mean == pytest.approx(((0.1 - 0.1) + (0.6 - 0.3)) / 2)
    # Only what has the same seed and order is compared: drops of 0.1 and 0.2 with those of 0.3 and 0.2.
    assert ties.against is not None
    assert (ties.against.mean, ties.against.seeds) == (pytest.approx(-0.1), 1)


def test_intervals_are_students() -> None:
    values = [0.1, 0.4, 0.2, 0.3, 0.25]
    found = figure_of(values)
    low, high = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    assert (found.mean, found.half) == (pytest.approx(np.mean(values)), pytest.approx((high - low) / 2))
    assert figure_of([0.5]) == Figure(0.5, None, 1)


# ---------------------------------------------------------------- studies


def test_a_study_tunes_then_runs_seed_by_seed_and_repeats_nothing(
    load: Workload, sources: dict[str, str], tmp_path: Path
) -> None:
    pair = Pair(
        "pair",
        replace(load, rounds=1, train_texts=8, test_texts=8),
        ways={LOCAL: (ONE_MACHINE, MERGED_TASKS)},
        measured=(1, 2),
        rates={KRON_LORA: (1e-2, 1e-3)},
        seeds=2,
    )
    file = tmp_path / "journal.jsonl"
    with ThreadPoolExecutor(1) as executor:
        forgetting.run([pair], sources, Journal(Outcome, file), executor, SILENT)
        written = file.read_text()
        forgetting.run([pair], sources, Journal(Outcome, file), executor, SILENT)
    assert file.read_text() == written
    jobs = [json.loads(line)["job"] for line in written.splitlines()]
    order = [(100, VALIDATION, "separate")] * 2 + [
        (seed, TEST, plan) for seed in (0, 1) for plan in ("sequence", "sequence", "separate")
    ]
    assert [(job["seed"], job["split"], job["way"]["plan"]) for job in jobs] == order
    assert sources["animals"] not in written  # a journal can be gone on with on another machine

    # Cut off after the first seed: what is there can be seen.
    file.write_text("".join(written.splitlines(keepends=True)[:5]))
    (part,) = finished([pair], Journal(Outcome, file))
    assert [job.seed for job in part.done] == [0, 0, 0]
    lines = summarize(part.done)
    console = Console(file=io.StringIO(), width=250)
    show(part.title, lines, "", console)
    assert all(text in console.file.getvalue() for text in ("merged: ties", "both", "animals"))
    for name in ("plot.svg", "again.svg"):
        plot({part.title: lines}, tmp_path / name)
    assert (tmp_path / "plot.svg").read_bytes() == (tmp_path / "again.svg").read_bytes()


def test_the_program_runs_shows_what_it_has_and_writes_all_of_it(
    tiny_bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, name in enumerate(TASKS):
        write_choices(tmp_path / "data" / name, seed=number)
    arc = FULL[-1]
    small = replace(
        arc,
        load=replace(arc.load, rounds=1, train_texts=8, test_texts=8, base=str(tiny_bert)),
        ways={SHARED: (ONE_MACHINE, MERGED_TASKS)},
        measured=(1, 2),
        rates={KRON_LORA: (1e-2,)},
        seeds=1,
    )
    monkeypatch.setattr(forgetting, "QUICK", (small,))
    monkeypatch.setattr(forgetting, "processes", ThreadPoolExecutor)  # a new process takes seconds to import
    written, drawn = tmp_path / "found.json", tmp_path / "found.svg"
    options = ["--quick", "--workers", "1", "--resume", str(tmp_path / "journal.jsonl")]
    assert forgetting.main([*options, "--only-show"]) == 0
    assert capsys.readouterr().out == ""
    run_it = ["--data", str(tmp_path / "data"), "--json", str(written), "--plot", str(drawn)]
    assert forgetting.main([*options, *run_it]) == 0
    shown = capsys.readouterr().out
    assert forgetting.main([*options, "--only-show"]) == 0
    assert capsys.readouterr().out == shown
    (part,) = json.loads(written.read_text())
    assert [line["way"] for line in part["lines"][:3]] == [ONE_MACHINE.name] * 3
    assert len(part["runs"]) == 3
    assert drawn.read_text().startswith("<?xml")

    assert forgetting.main([*options, "--data", str(tmp_path / "nowhere")]) == 1
    assert "nowhere" in capsys.readouterr().err


def test_the_journal_gives_back_what_another_process_would_find(
    load: Workload, sources: dict[str, str], tmp_path: Path
) -> None:
    job = job_of(MERGED_TASKS, replace(load, rounds=1))
    journal = Journal[Job, Outcome](Outcome, tmp_path / "journal.jsonl")
    journal.add(job, outcome_of(job, sources))
    read = Journal[Job, Outcome](Outcome, tmp_path / "journal.jsonl").outcome(job)
    assert replace(read, seconds=0) == replace(run(job, sources), seconds=0)


@pytest.mark.parametrize("pair", [*FULL, *QUICK], ids=lambda pair: pair.name)
def test_each_pair_is_measured_when_a_task_is_done_and_has_a_rate_for_each_adapter(pair: Pair) -> None:
    assert {pair.load.rounds, 2 * pair.load.rounds} <= set(pair.measured)
    assert all(tuning(pair).values())
    ways = [way for of_heads in pair.ways.values() for way in of_heads]
    assert all(ONE_MACHINE in of_heads for of_heads in pair.ways.values())
    settings = [settings_of(way, pair) for way in ways]
    texts = {s.train.max_train_examples * way.clients for s, way in zip(settings, ways, strict=True)}
    assert texts == {pair.load.train_texts}
    assert len({replace(s.train, max_train_examples=0) for s in settings}) == 1


def settings_of(way: Way, pair: Pair) -> Settings:
    return Job(way, pair.name, pair.load, pair.measured, LOCAL, 0, 0, 1e-3, TEST).settings("a,b", "runs")


def test_all_ways_start_from_the_same_and_only_sequences_have_an_order() -> None:
    names = [way.name for way in FEW]
    assert len(set(names)) == len(names)
    assert {way.adapter().alpha / way.adapter().rank for way in FEW} == {4.0}
    assert {way.plan for way in FEW} == {SEQUENCE, JOINT, MERGED_TASKS.plan}
