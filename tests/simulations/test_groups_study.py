"""The study of groups: its figures against those of the same runs, merged and measured without it."""

from __future__ import annotations

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
from federation_cases import Federation
from rich.console import Console

from clients.batches import tokenize
from clients.node import Node, this_node
from clients.training import evaluate_head_only
from fedkron.adapters import adapter_layout, attach, load_adapter_state
from fedkron.base import FEATURE_NORM, load_base
from fedkron.exchange import load_adapter, load_head
from fedkron.layout import State
from fedkron.settings import AdapterSettings, Settings, run_config
from simulations.groups import FULL, QUICK, Study, run
from simulations.groups_study.federation import candidates, federate, groups_of
from simulations.groups_study.jobs import AS_TRAINED, Job, Outcome
from simulations.groups_study.mergings import DENSITY, mergings
from simulations.groups_study.pairs import pairs
from simulations.groups_study.plot import plot
from simulations.groups_study.summary import FITTED, KEPT, NO_ADAPTER, sharings, summarize
from simulations.groups_study.tables import show
from simulations.groups_study.ways import CLUSTERED, ONE_FOR_ALL, PER_TASK, Way, ways
from simulations.study.journal import Journal
from simulations.study.workload import Workload

SILENT = Console(file=io.StringIO())
NODES = 3
WAYS = {way.name: way for way in ways(2)}


@pytest.fixture
def workload(tiny_bert: Path, tasks: Path) -> Workload:
    """Three nodes, of which the first and the last have the same task."""
    return Workload(
        tasks=(str(tasks / "animals"), str(tasks / "quiz")),
        clients=NODES,
        rounds=2,
        train_texts=16,
        test_texts=12,
        batch_size=8,
        max_length=16,
        base=str(tiny_bert),
    )


def job_of(way: str, workload: Workload) -> Job:
    return Job(WAYS[way], workload, 0, 1e-2)


def run_again(job: Job, folder: Path) -> Federation:
    """The same federation without the study."""
    config = run_config(job.settings(str(folder)))
    return federation_cases.federate(config, federation_cases.grid_of(config, NODES))


# ---------------------------------------------------------------- federations


@pytest.mark.parametrize("way", WAYS)
def test_figures_are_those_of_the_run_and_its_files_reach_what_its_nodes_measured(
    way: str, workload: Workload, tmp_path: Path
) -> None:
    job = job_of(way, workload)
    found = federate(job)
    again = run_again(job, tmp_path)
    assert again.log.settings.groups == job.way.groups
    assert found.tasks == ("animals", "quiz")
    assert found.accuracy == tuple(
        tuple(figures.accuracy for figures in one.tasks.values()) for one in again.log.rounds
    )
    by_round = again.log.bytes_by_round.values()
    assert found.up == tuple(total.message_up for total in by_round)
    assert found.down == tuple(total.message_down for total in by_round)
    # The adapter files and the heads on the nodes' disks are what was measured in the last round.
    assert found.kept[AS_TRAINED] == pytest.approx(found.accuracy[-1])
    assert found.kept.keys() == found.fitted.keys()

    everybody = ("animals-0", "quiz-1", "animals-2")
    assert sorted(node for group in found.groups for node in group) == sorted(everybody)
    if way == ONE_FOR_ALL:
        assert found.groups == (everybody,)
    else:
        assert set(found.groups) == set(again.log.groups.values())
    if way == PER_TASK:
        assert set(found.groups) == {("animals-0", "animals-2"), ("quiz-1",)}
    assert set(found.kept) == {AS_TRAINED} | ({m.name for m in mergings(2)} if way == PER_TASK else set())


def test_merged_adapters_by_hand(workload: Workload, tmp_path: Path) -> None:
    job = job_of(PER_TASK, workload)
    found = federate(job)
    again = run_again(job, tmp_path)
    settings = again.log.settings
    nodes = [
        this_node({"partition-id": number, "num-partitions": NODES}, settings, 1) for number in range(NODES)
    ]
    files = {
        task: load_adapter(again.folder / "groups" / task / "adapter.safetensors")
        for task in ("animals", "quiz")
    }
    groups = groups_of(again.folder, [f"{node.task.name}-{node.partition}" for node in nodes])
    by_name = {candidate.name: candidate for candidate in candidates(groups, files, settings)}
    for name, factor, rank in (("mean, 2r", 0.5, 16), ("sum", 1.0, 8)):
        candidate = by_name[name]
        assert candidate.adapter.rank == rank
        wanted = {
            path: factor
            * sum(deltas(file.state, settings.base, settings.adapter)[path] for file in files.values())
            for path in deltas(files["quiz"].state, settings.base, settings.adapter)
        }
        state = candidate.states["quiz-1"]
        got = deltas(state, settings.base, candidate.adapter)
        lost = np.sqrt(sum(np.sum((wanted[path] - got[path]) ** 2) for path in wanted))
        norm = np.sqrt(sum(np.sum(wanted[path] ** 2) for path in wanted))
        assert candidate.projection_error == pytest.approx(lost / norm, rel=1e-3)
        assert found.projection_error[name] == candidate.projection_error
        of_node = [accuracy_by_hand(node, state, candidate.adapter, settings.base) for node in nodes]
        assert found.kept[name] == pytest.approx(((of_node[0] + of_node[2]) / 2, of_node[1]))
        new = [with_new_head(node, got, settings) for node in nodes]
        assert found.fitted[name] == pytest.approx(((new[0] + new[2]) / 2, new[1]))


def deltas(state: State, base: str, adapter: AdapterSettings) -> dict[str, np.ndarray]:
    """ΔW of each layer, by numpy's Kronecker product."""
    layout = adapter_layout(attach(load_base(base).backbone, adapter.spec()), "")
    return {
        module.path: adapter.alpha
        / adapter.rank
        * np.kron(
            *(
                state[module.tensor_name("A")].astype(np.float64),
                state[module.tensor_name("B1")].astype(np.float64) @ state[module.tensor_name("B2")],
            )
        )
        for module in layout.modules
    }


def with_new_head(node: Node, merged: dict[str, np.ndarray], settings: Settings) -> float:
    """What a head alone reaches on a base whose weights hold the adapter."""
    loaded = load_base(settings.base)
    with torch.no_grad():
        for path, delta in merged.items():
            loaded.backbone.get_submodule(path).weight += torch.from_numpy(delta).float()
    train, test = (tokenize(texts, loaded.tokenizer, 16) for texts in (node.task.train, node.task.test))
    return evaluate_head_only(
        loaded.backbone,
        train,
        test,
        len(node.task.labels) or 1,
        settings.train,
        pad_id=loaded.tokenizer.pad_token_id,
        epochs=2,
        seed=0,
    ).accuracy


def accuracy_by_hand(node: Node, state: State, adapter: AdapterSettings, base: str) -> float:
    """One text at a time, without batches, padding or the nodes' code."""
    loaded = load_base(base)
    backbone = attach(loaded.backbone, adapter.spec()).eval()
    load_adapter_state(backbone, state)
    head = load_head(node.directory / "head.safetensors")

    def logits(text: str) -> np.ndarray:
        ids = loaded.tokenizer([text], truncation=True, max_length=16, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            feature = backbone(input_ids=ids).last_hidden_state[0].mean(0).numpy()
        return head.weight @ (FEATURE_NORM * feature / np.linalg.norm(feature)) + head.bias

    def right(example: object) -> bool:
        if node.task.labels:
            return int(np.argmax(logits(example.text))) == example.label  # type: ignore[attr-defined]
        texts = [example.question.replace("_", choice, 1) for choice in example.choices]  # type: ignore[attr-defined]
        return int(np.argmax([logits(text)[0] for text in texts])) == example.answer  # type: ignore[attr-defined]

    return float(np.mean([right(example) for example in node.task.test]))


# ---------------------------------------------------------------- figures


def test_pairs_by_hand() -> None:
    # a-1 and a-2 are rightly together; b-1 and b-2 wrongly apart; b-2 and c-1 wrongly together.
    found = pairs([[("a-1", "a-2"), ("b-1",), ("b-2", "c-1")]])
    assert (found.same, found.same_together) == (2, 1)
    assert (found.different, found.different_apart) == (8, 7)
    assert found.right == 0.8
    assert pairs([[("a-1", "a-2"), ("b-1",)], [("a-1", "a-2", "b-1")]]).right == pytest.approx(4 / 6)


def outcome(kept: Sequence[float], *, fitted: Sequence[float] = (0.5, 0.5), up: int = 60) -> Outcome:
    return Outcome(
        tasks=("one", "two"),
        accuracy=(tuple(kept),),
        loss=((1.0, 1.0),),
        head_only=(0.25, 0.75),
        up=(up,),
        down=(90,),
        seconds=1.0,
        groups=(("one-0", "two-1"),),
        kept={AS_TRAINED: tuple(kept)},
        fitted={AS_TRAINED: tuple(fitted)},
        projection_error={},
    )


def with_merged(plain: Outcome, kept: Sequence[float], fitted: Sequence[float], error: float) -> Outcome:
    return replace(
        plain,
        kept={**plain.kept, "ties": tuple(kept)},
        fitted={**plain.fitted, "ties": tuple(fitted)},
        projection_error={"ties": error},
    )


def test_figures_of_adapters_by_hand() -> None:
    runs = {
        ONE_FOR_ALL: [outcome([0.6, 0.8]), outcome([0.7, 0.7])],
        PER_TASK: [
            with_merged(outcome([0.7, 0.9], up=30), [0.5, 0.5], [0.6, 0.7], 0.1),
            with_merged(outcome([0.8, 0.8], up=30), [0.3, 0.5], [0.7, 0.9], 0.3),
        ],
    }
    lines = {(line.adapter, line.heads): line for line in summarize(runs)}
    assert list(lines) == [
        (ONE_FOR_ALL, KEPT),
        (PER_TASK, KEPT),
        ("merged: ties", KEPT),
        (NO_ADAPTER, FITTED),
        (ONE_FOR_ALL, FITTED),
        (PER_TASK, FITTED),
        ("merged: ties", FITTED),
    ]
    reference, merged = lines[ONE_FOR_ALL, KEPT], lines["merged: ties", FITTED]
    assert (reference.accuracy.mean, reference.against, reference.projection_error) == (
        pytest.approx(0.7),
        None,
        None,
    )
    assert reference.tasks["one"].mean == pytest.approx(0.65)
    assert reference.tasks["one"].deviation == pytest.approx(0.1 / 2**0.5)
    assert lines[NO_ADAPTER, FITTED].accuracy.mean == 0.5
    assert merged.accuracy.mean == pytest.approx((0.65 + 0.8) / 2)
    assert merged.accuracy.deviation == pytest.approx(0.15 / 2**0.5)
    assert merged.projection_error == pytest.approx(0.2)
    # Paired differences are 0, −0.1, 0 and 0.2.
    assert merged.against is not None
    assert merged.against.mean == pytest.approx(0.025)
    assert merged.against.standard_error == pytest.approx(np.std([0, -0.1, 0, 0.2], ddof=1) / 2)

    one, per_task = sharings(runs, clients=2)
    assert (one.traffic.up, one.times.up) == (30, 1)
    assert (per_task.traffic.up, per_task.times.up, per_task.times.down) == (15, 0.5, 1)


# ---------------------------------------------------------------- studies


def test_a_study_runs_seed_by_seed_to_tables_and_plot_and_repeats_nothing(
    workload: Workload, tmp_path: Path
) -> None:
    study = Study(replace(workload, rounds=1, train_texts=8), seeds=2, shared_rate=1e-2, group_rate=3e-3)
    file = tmp_path / "journal.jsonl"
    with ThreadPoolExecutor(1) as executor:
        runs = run(study, Journal(Outcome, file), executor, SILENT)
        written = file.read_text()
        assert run(study, Journal(Outcome, file), executor, SILENT) == runs
    assert file.read_text() == written
    jobs = [json.loads(line)["job"] for line in written.splitlines()]
    assert [(job["seed"], job["way"]["name"]) for job in jobs] == [(s, w) for s in (0, 1) for w in WAYS]

    console = Console(file=io.StringIO(), width=200)
    lines = summarize(runs)
    show(lines, sharings(runs, NODES), console)
    for text in ("merged: dare_ties", "animals-0 animals-2", NO_ADAPTER, "same: together"):
        assert text in console.file.getvalue()
    for name in ("plot.svg", "again.svg"):
        plot(lines, tmp_path / name)
    assert (tmp_path / "plot.svg").read_bytes() == (tmp_path / "again.svg").read_bytes()


@pytest.mark.parametrize("study", [FULL, QUICK])
def test_ways_differ_in_who_shares_only_and_some_tasks_have_two_nodes(study: Study) -> None:
    load = study.workload
    found: list[Way] = list(ways(len(load.tasks)))
    settings = [Job(way, load, 0, study.shared_rate).settings("runs") for way in found]
    assert len({replace(s, groups=settings[0].groups) for s in settings}) == 1
    clustered = next(way for way in found if way.name == CLUSTERED)
    assert clustered.groups.clusters == len(load.tasks) < load.clients
    assert clustered.groups.warm_up < load.rounds
    assert 0 < DENSITY < 1
