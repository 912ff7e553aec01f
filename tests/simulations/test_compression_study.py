"""The study of codecs: its statistics by hand, its bytes and its forgetting against what nodes really get."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from federation_cases import wire_size
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from rich.console import Console

import clients.app
from clients.tasks import load_task
from fedkron.errors import RunError
from fedkron.flower import CompressedGrid, FedKron, compressed_exchange
from fedkron.flower.client_mod import RESIDUAL
from fedkron.flower.wire import to_arrays, to_state
from fedkron.layout import AdapterLayout
from simulations.compression import Study, run
from simulations.compression_study.federation import EXCHANGES, Exchange, federate
from simulations.compression_study.forgetting import ForgetfulServer
from simulations.compression_study.jobs import Job, outcome_of
from simulations.compression_study.plot import plot
from simulations.compression_study.schemes import FORGETFUL, REFERENCE, SCHEMES, SEAM
from simulations.compression_study.summary import summarize
from simulations.compression_study.tables import show
from simulations.in_process import InProcessGrid
from simulations.study import statistics
from simulations.study.data import TEST, hold_out
from simulations.study.journal import Journal
from simulations.study.outcome import Outcome
from simulations.study.pool import processes, run_jobs
from simulations.study.workload import Workload

SILENT = Console(file=io.StringIO())
UPDATE = np.float32(0.25)

# ---------------------------------------------------------------- statistics


def outcome(accuracy: list[list[float]], *, loss: float = 1.0, up: int = 60, down: int = 90) -> Outcome:
    """Three nodes, of which the first and the last have the same task."""
    rounds = len(accuracy)
    return Outcome(
        tasks=("one", "two", "one"),
        accuracy=tuple(map(tuple, accuracy)),
        loss=((loss,) * 3,) * rounds,
        head_only=(0.5, 0.6, 0.7),
        up=tuple(up + number for number in range(rounds)),
        down=tuple(down * (number + 1) for number in range(rounds)),
        seconds=1.0,
    )


def test_every_task_has_the_same_weight_however_many_nodes_have_it() -> None:
    rounds = outcome([[0.1, 0.5, 0.3], [0.2, 0.6, 0.4]])
    assert statistics.by_task(rounds, 1) == pytest.approx({"one": 0.3, "two": 0.6})
    assert statistics.by_task(rounds, 2) == pytest.approx({"one": 0.25, "two": 0.55})
    assert statistics.mean_over_tasks(rounds, 1) == pytest.approx(0.45)


def test_a_difference_is_paired_by_seed_and_task() -> None:
    ours = [outcome([[0.9, 0.8, 0.7]] * 2), outcome([[0.6, 0.5, 0.6]] * 2)]
    theirs = [outcome([[0.7, 0.7, 0.7]] * 2), outcome([[0.6, 0.6, 0.4]] * 2)]
    found = statistics.difference(ours, theirs)
    pairs = [0.1, 0.1, 0.1, -0.1]
    assert found.mean == pytest.approx(0.05)
    # Variance by hand: deviations from 0.05 are 0.05 three times and −0.15.
    assert found.standard_error == pytest.approx(((3 * 0.0025 + 0.0225) / 3) ** 0.5 / 2)
    assert found.standard_error == pytest.approx(np.std(pairs, ddof=1) / np.sqrt(4))
    assert found.pairs == 4


def test_what_all_pairs_share_does_not_blur_a_difference() -> None:
    theirs = [outcome([[0.2, 0.9, 0.2]]), outcome([[0.5, 0.1, 0.5]])]
    ours = [outcome([[value + 0.01 for value in rounds] for rounds in other.accuracy]) for other in theirs]
    found = statistics.difference(ours, theirs)
    assert found.mean == pytest.approx(0.01)
    assert found.standard_error == pytest.approx(0.0, abs=1e-12)


def test_one_seed_has_a_mean_but_no_spread() -> None:
    assert statistics.spread([0.4]) == statistics.Spread(0.4, None)
    assert statistics.spread([0.4, 0.6, 0.8]).deviation == pytest.approx(0.2)


def test_bytes_are_per_client_and_round() -> None:
    rounds = [outcome([[0.5] * 3] * 2), outcome([[0.5] * 3] * 2, up=120)]
    assert statistics.traffic(rounds, 3).up == pytest.approx((60 + 61 + 120 + 121) / 4 / 3)
    assert statistics.traffic(rounds, 3).down == pytest.approx((90 + 180) / 2 / 3)
    assert statistics.traffic(rounds, 3, last=1) == statistics.Traffic(pytest.approx((61 + 121) / 2 / 3), 60)
    times = statistics.Traffic(1, 3).times_smaller(statistics.Traffic(4, 6))
    assert (times.up, times.down, times.both) == (4, 2, 2.5)


def test_the_best_rate_has_the_highest_accuracy_and_then_the_lowest_loss() -> None:
    tried = {1e-4: outcome([[0.5] * 3]), 1e-3: outcome([[0.6] * 3]), 3e-3: outcome([[0.6] * 3], loss=0.9)}
    assert statistics.best_rate(tried) == 3e-3


# ---------------------------------------------------------------- federations


@pytest.fixture
def workload(tiny_bert: Path, tasks: Path) -> Workload:
    return Workload(
        tasks=(str(tasks / "animals"), str(tasks / "colours")),
        clients=2,
        rounds=2,
        train_texts=16,
        test_texts=12,
        batch_size=8,
        max_length=16,
        base=str(tiny_bert),
    )


def job_of(scheme: str, workload: Workload) -> Job:
    return Job(SCHEMES[scheme], workload, 0, 1e-2, TEST)


Observer = Callable[[Message, Context, Exchange], Message]


def federate_observed(job: Job, observer: Observer, monkeypatch: pytest.MonkeyPatch) -> Outcome:
    """Run a job with somebody between the wire and the program on the nodes."""
    exchange = EXCHANGES[job.scheme.exchange]

    def app(message: Message, context: Context) -> Message:
        return observer(message, context, exchange)

    with monkeypatch.context() as patch:
        patch.setitem(EXCHANGES, job.scheme.exchange, replace(exchange, app=app))
        return federate(job)


@pytest.mark.parametrize("scheme", ["LoRA-8", "int4", "int4-no-feedback"])
def test_bytes_are_those_that_the_nodes_get_and_send(
    scheme: str, workload: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {"up": [0, 0], "down": [0, 0]}

    def observe(message: Message, context: Context, exchange: Exchange) -> Message:
        number = int(message.content.config_records["config"]["server-round"]) - 1
        seen["down"][number] += wire_size(message)
        reply = exchange.app(message, context)
        seen["up"][number] += wire_size(reply)
        return reply

    found = federate_observed(job_of(scheme, workload), observe, monkeypatch)
    assert found.up == tuple(seen["up"])
    assert found.down == tuple(seen["down"])
    assert found.tasks == ("animals", "colours")


def test_where_nothing_is_left_out_there_is_nothing_to_forget(workload: Workload) -> None:
    job = job_of(REFERENCE.name, workload)
    usual, forgetful = federate(job), federate(replace(job, scheme=replace(REFERENCE, exchange=FORGETFUL)))
    assert replace(forgetful, seconds=0) == replace(usual, seconds=0)


@pytest.mark.parametrize("exchange", [FORGETFUL, SEAM])
def test_a_forgetful_node_uploads_what_a_node_without_memory_of_uploads_would(
    exchange: str, workload: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads: list[tuple[Message, Message]] = []

    def observe(message: Message, context: Context, exchange: Exchange) -> Message:
        blank = copy.deepcopy(context)
        for key in [key for key in blank.state if key.startswith(RESIDUAL)]:
            del blank.state[key]
        reference = clients.app.app(copy.deepcopy(message), blank)
        reply = exchange.app(message, context)
        if message.metadata.message_type == "train":
            uploads.append((reply, reference))
        return reply

    scheme = replace(SCHEMES["int4"], exchange=exchange)
    federate_observed(replace(job_of("int4", workload), scheme=scheme), observe, monkeypatch)
    first, second = uploads[:2], uploads[2:]
    assert all(ours.content == theirs.content for ours, theirs in first)
    assert all((ours.content == theirs.content) == (exchange == FORGETFUL) for ours, theirs in second)


@pytest.mark.parametrize("strategy", [ForgetfulServer, FedKron])
def test_a_forgetful_server_goes_on_from_what_the_nodes_have_got(strategy: type[FedKron]) -> None:
    app, got = ClientApp(mods=[compressed_exchange]), []

    @app.train()
    def train(message: Message, context: Context) -> Message:  # noqa: ARG001
        got.append(to_state(message.content.array_records["arrays"])["w"])
        reply = {"arrays": to_arrays({"w": got[-1] + UPDATE}), "metrics": MetricRecord({"num-examples": 1})}
        return Message(RecordDict(reply), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:  # noqa: ARG001
        got.append(to_state(message.content.array_records["arrays"])["w"])
        return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1})}), reply_to=message)

    weights = {"w": np.random.default_rng(0).standard_normal((40, 30)).astype(np.float32)}
    layout = AdapterLayout.of_arrays(weights)
    grid = CompressedGrid(InProcessGrid(app, 1, {}), layout=layout, upload="fp32", broadcast="int4")
    server = strategy(layout, min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1)
    final = to_state(server.start(grid, to_arrays(weights), num_rounds=2).arrays)["w"]
    _, evaluated, trained, _ = got
    forgets = strategy is ForgetfulServer
    assert np.allclose(final, trained + UPDATE, atol=1e-5) == forgets
    if forgets:
        np.testing.assert_allclose(trained, evaluated, atol=1e-5)


def test_held_out_texts_are_training_texts_that_are_not_trained_on(tasks: Path, tmp_path: Path) -> None:
    whole, tuned = load_task(str(tasks / "quiz")), load_task(str(hold_out(str(tasks / "quiz"), 7, tmp_path)))
    assert (len(tuned.train), len(tuned.test)) == (32, 16)
    assert sorted(map(str, tuned.train + tuned.test)) == sorted(map(str, whole.train))
    assert (tuned.name, tuned.kind, tuned.labels) == (whole.name, whole.kind, whole.labels)


# ---------------------------------------------------------------- studies


def test_a_study_runs_to_tables_and_plot_and_repeats_nothing(workload: Workload, tmp_path: Path) -> None:
    study = Study(workload, ("LoRA-8", "fp32", "int4"), seeds=2, rates=(1e-3, 1e-2))
    journal = tmp_path / "journal.jsonl"
    with ThreadPoolExecutor(1) as executor:
        tried, runs = run(study, Journal(Outcome, journal), executor, SILENT)
        written = journal.read_text()
        assert run(study, Journal(Outcome, journal), executor, SILENT) == (tried, runs)
    assert len(written.splitlines()) == 2 * 2 + 3 * 2
    assert journal.read_text() == written

    rates = {kind: statistics.best_rate(outcomes) for kind, outcomes in tried.items()}
    lines = summarize(runs, rates, workload.clients)
    reference = {line.scheme.name: line for line in lines}["fp32"]
    assert reference.against["fp32"] is None
    assert reference.against["LoRA-8"] == statistics.difference(
        *(runs[SCHEMES[n]] for n in ("fp32", "LoRA-8"))
    )
    console = Console(file=io.StringIO(), width=200)
    show(lines, tried, console)
    assert all(name in console.file.getvalue() for name in ("LoRA-8, plain Flower", "Kron-LoRA int4"))
    for name in ("plot.svg", "again.svg", "plot.png"):
        plot(lines, tmp_path / name)
    assert (tmp_path / "plot.svg").read_bytes() == (tmp_path / "again.svg").read_bytes()
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_another_process_finds_the_same_and_a_cut_off_line_runs_again(
    workload: Workload, tmp_path: Path
) -> None:
    file, job = tmp_path / "journal.jsonl", job_of("int4", workload)
    other = replace(job, seed=1)
    journal = Journal(Outcome, file)
    with processes(1) as executor:
        run_jobs([job], outcome_of, journal, executor, lambda *_: None)
    assert replace(journal.outcome(job), seconds=0) == replace(federate(job), seconds=0)

    journal.add(other, journal.outcome(job))
    whole = file.read_bytes()
    file.write_bytes(whole[:-40])
    resumed = Journal(Outcome, file)
    assert job in resumed
    assert other not in resumed
    resumed.add(other, journal.outcome(job))
    assert file.read_bytes() == whole


@pytest.mark.parametrize("content", ["notes\n", "notes", "[1]\n", '{"job": {}, "outcome": {}}\n'])
def test_a_file_that_is_not_a_journal_is_refused_and_left_alone(content: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text(content)
    with pytest.raises(RunError, match="not a journal"):
        Journal(Outcome, file)
    assert file.read_text() == content


def test_a_node_that_fails_ends_its_federation(workload: Workload) -> None:
    with pytest.raises(RunError, match=r"node \d+ failed: .*learning-rate"):
        federate(replace(job_of("int4", workload), learning_rate=-1.0))
