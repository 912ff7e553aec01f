"""Whole federations under differential privacy: what the server holds, what leaves a node, what it keeps."""

import math
import random
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
from federation_cases import ObservedGrid
from flwr.app import ConfigRecord, Context, Message, MetricRecord
from flwr.serverapp.strategy import FedAvgM
from seam_cases import State, record, third_party_app

from fedkron.compression.payload import decode_vector
from fedkron.errors import RunError
from fedkron.flower import FedKron, RoundReport, compressed_exchange
from fedkron.flower.central_privacy import fixed_clipping, private
from fedkron.flower.client_mod import RESIDUAL
from fedkron.flower.local_privacy import local_privacy, multiplier
from fedkron.flower.one_for_all import one_for_all
from fedkron.flower.unopened_grid import UnopenedGrid
from fedkron.flower.wire import PAYLOAD, to_state
from fedkron.layout import AdapterLayout, TensorLayout, flatten, unflatten
from fedkron.privacy import Budget, LocalCharges, Spent, epsilon

NORM, NOISE, DELTA = 2.0, 0.7, 1e-5
NODES = 4
LAYOUT = AdapterLayout("a base", (), (TensorLayout("one", (200, 100)), TensorLayout("two", (4000,))))
START = {t.name: np.zeros(t.shape, np.float32) for t in LAYOUT.tensors}


def step(partition: int) -> np.ndarray:
    """What a node wants to learn, 25 times as much as it may."""
    drawn = np.random.default_rng(partition).standard_normal(LAYOUT.size)
    return (25 * NORM / np.linalg.norm(drawn) * drawn).astype(np.float32)


def learn(received: State, partition: int) -> State:
    return unflatten(flatten(received, LAYOUT) + step(partition), LAYOUT)


def clipped(partitions: Sequence[int]) -> np.ndarray:
    """The mean of the steps at their largest allowed length."""
    return np.mean([step(p).astype(np.float64) / 25 for p in partitions], axis=0)


def deviations_off(noise: np.ndarray, deviation: float) -> float:
    """By how many standard errors the sample's variance is off."""
    return float((noise.var() / deviation**2 - 1) / math.sqrt(2 / noise.size))


class Run:
    """A federation of `FedKron` that has ended."""

    def __init__(
        self,
        *,
        mods: Sequence[Callable] = (),
        outer: Sequence[Callable] = (),
        codec: str = "fp32",
        rounds: int = 1,
        **options: object,
    ) -> None:
        app = third_party_app([*outer, compressed_exchange], train_mods=mods, learn=learn)
        self.nodes = ObservedGrid(app, NODES, {})
        grid = UnopenedGrid(self.nodes, layout=LAYOUT, upload=codec, broadcast="fp32")
        self.reports: list[RoundReport] = []
        strategy = FedKron(
            LAYOUT,
            fraction_evaluate=0.0,
            uploads=grid.uploads,
            on_round=lambda report, _: self.reports.append(report),
            **options,  # type: ignore[arg-type]
        )
        strategy.adapters.adopt(0, record(START))
        random.seed(0)
        self.held = flatten(to_state(strategy.start(grid, record(START), rounds).arrays), LAYOUT)

    @property
    def trained(self) -> Iterator[Message]:
        return (reply for reply in self.nodes.up if reply.metadata.message_type == "train")


def central(noise: float = NOISE) -> dict[str, object]:
    privacy = fixed_clipping(NORM, noise, DELTA)
    return {"adapters": private(privacy), "privacy": privacy}


def local() -> dict[str, object]:
    budget = Budget([multiplier(NOISE)], DELTA)
    return {"adapters": one_for_all, "privacy": LocalCharges(budget, NORM)}


# ------------------------------------------------------------------ central


def test_server_holds_the_clipped_mean_with_the_noise_that_was_claimed_and_says_what_it_cost() -> None:
    run = Run(**central())
    assert abs(deviations_off(run.held - clipped(range(NODES)), NOISE * NORM / NODES)) < 5
    assert [report.privacy for report in run.reports] == [Spent(epsilon([NOISE], DELTA), DELTA, 1, NORM)]


@pytest.mark.parametrize("codec", ["int4", "ecsq"])
def test_what_is_clipped_is_what_the_server_has_decoded(codec: str) -> None:
    run = Run(**central(0.0), codec=codec, rounds=2)
    # Error feedback adds to the upload of the second round what the first one left out.
    assert np.linalg.norm(run.held.astype(np.float64)) <= 2 * NORM * (1 + 1e-6)
    assert {report.privacy for report in run.reports} == {
        Spent(None, DELTA, 1, NORM),
        Spent(None, DELTA, 2, NORM),
    }


def damaged(message: Message, context: Context, call_next: Callable) -> Message:
    """Two nodes fail in every round: one raises, the other sends garbage."""
    if context.node_config["partition-id"] == 0:
        raise ValueError("out of memory")
    reply = call_next(message, context)
    if context.node_config["partition-id"] == 1 and not reply.has_error():
        reply.content["arrays"][PAYLOAD] = b"garbage"
    return reply


def test_failures_lose_no_round_and_the_noise_fits_those_who_are_left() -> None:
    run = Run(**central(), outer=(damaged,))
    assert len(run.reports[0].failures) == 2
    assert run.reports[0].trained[""].clients == 2
    assert abs(deviations_off(run.held - clipped((2, 3)), NOISE * NORM / 2)) < 5


def test_too_many_failures_end_a_private_run_as_any_other() -> None:
    with pytest.raises(RunError, match="2 of 4 clients failed in training"):
        Run(**central(), outer=(damaged,), max_failure_fraction=0.4)


def boasting(message: Message, context: Context, call_next: Callable) -> Message:
    reply = call_next(message, context)
    if context.node_config["partition-id"] == 3:
        reply.content["metrics"]["num-examples"] = 10**9
        reply.content["arrays"] = record({n: 1e6 * v for n, v in to_state(reply.content["arrays"]).items()})
    return reply


def test_a_node_that_boasts_has_the_share_of_one() -> None:
    run = Run(**central(0.0), mods=(boasting,))
    np.testing.assert_allclose(run.held, clipped(range(NODES)), atol=1e-6)


def test_an_optimizer_of_the_server_goes_on_from_what_is_noisy() -> None:
    choice = {"fraction_evaluate": 0.0}
    run = Run(**central(), optimizer=FedAvgM(**choice, server_learning_rate=0.5))
    assert abs(deviations_off(run.held - 0.5 * clipped(range(NODES)), 0.5 * NOISE * NORM / NODES)) < 5


def test_a_node_is_charged_for_the_rounds_it_is_asked_in() -> None:
    run = Run(**central(), fraction_train=0.5, rounds=6)
    asked = [m.metadata.dst_node_id for m in run.nodes.down if m.metadata.message_type == "train"]
    most = max(map(asked.count, asked))
    assert most < 6
    assert run.reports[-1].privacy == Spent(epsilon([NOISE] * most, DELTA), DELTA, most, NORM)


# ------------------------------------------------------------------ local


def test_what_leaves_a_node_is_its_clipped_update_with_noise_and_nothing_that_it_measured() -> None:
    run = Run(**local(), mods=(local_privacy(NORM, NOISE),))
    replies = list(run.trained)
    assert len(replies) == NODES
    for partition, reply in enumerate(replies):
        _, sent = decode_vector(reply.content["arrays"][PAYLOAD], LAYOUT)
        assert abs(deviations_off(sent - clipped([partition]), NOISE * NORM)) < 5
        assert dict(reply.content["metrics"]) == {"num-examples": 1}
    assert abs(deviations_off(run.held - clipped(range(NODES)), NOISE * NORM / math.sqrt(NODES))) < 5
    # Other data could have led to the opposite update, twice the norm away.
    assert run.reports[0].privacy == Spent(epsilon([NOISE / 2], DELTA), DELTA, 1, NORM)


def test_error_feedback_keeps_only_what_quantization_left_out_of_noisy_numbers() -> None:
    seen: dict[int, np.ndarray] = {}

    def watch(message: Message, context: Context, call_next: Callable) -> Message:
        """Between the noise and the encoding."""
        received = flatten(to_state(message.content["arrays"]), LAYOUT)
        reply = call_next(message, context)
        noisy = flatten(to_state(reply.content["arrays"]), LAYOUT) - received
        seen[context.node_id] = seen.get(context.node_id, 0) + noisy
        return reply

    run = Run(**local(), mods=(watch, local_privacy(NORM, NOISE)), codec="int4", rounds=3)
    sent: dict[int, np.ndarray] = {}
    for reply in run.trained:
        _, update = decode_vector(reply.content["arrays"][PAYLOAD], LAYOUT)
        sent[reply.metadata.src_node_id] = sent.get(reply.metadata.src_node_id, 0) + update
    for node, context in run.nodes.contexts.items():
        kept = context.state[f"{RESIDUAL}.arrays"]
        assert isinstance(kept, ConfigRecord)
        residual = np.frombuffer(kept["residual"], np.float32)  # type: ignore[arg-type]
        np.testing.assert_allclose(residual, seen[node] - sent[node], atol=1e-4)
        assert abs(deviations_off(seen[node] - 3 * clipped([node - 1000]), math.sqrt(3) * NOISE * NORM)) < 5


def test_a_node_that_learnt_nothing_sends_noise() -> None:
    def idle(message: Message, context: Context, call_next: Callable) -> Message:
        reply = call_next(message, context)
        reply.content["arrays"] = message.content["arrays"]
        reply.content["metrics"] = MetricRecord({"num-examples": 3})
        return reply

    run = Run(**local(), mods=(local_privacy(NORM, NOISE), idle))
    assert run.reports[0].failures == []
    assert abs(deviations_off(run.held, NOISE * NORM / math.sqrt(NODES))) < 5
