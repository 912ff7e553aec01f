"""Differential privacy of clients by a server that is trusted: Flower's wrappers, on the adapters of a round.

The server opens each upload, clips its change of the adapter to a norm C, takes the plain mean of the n that
are valid, and adds Gaussian noise of standard deviation z·C/n to each number (McMahan et al. 2018, arXiv
1710.06963). One node can change the sum by C at most, whatever it sends and however many examples it says it
has, so that the noise multiplier of a round is z.

Flower's wrappers do that; they are called once a round with the valid uploads only. (In the place of the
whole strategy they would skip a round in which one reply is an error, and divide the noise by the number of
nodes that were asked, whatever number answered.)
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Message, Metadata, MetricRecord, RecordDict
from flwr.app.message import make_message
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAvg,
)

from fedkron.errors import ConfigError, NonFiniteError
from fedkron.flower.combining import FACTORWISE
from fedkron.flower.global_adapter import ARRAYS, Answer, Combined, GlobalAdapter, MakeAdapter, take_all
from fedkron.flower.noise import noise_of_the_system
from fedkron.flower.one_for_all import OneForAll
from fedkron.flower.wire import to_state
from fedkron.layout import AdapterLayout, State, Vector, flatten, unflatten
from fedkron.privacy import Budget, Spent

COUNT_NOISE = 5.0
"""Adaptive clipping: noise of the number of clipped updates, in noise multipliers of the updates. It then
takes 4% of what a round costs."""


class CentralPrivacy:
    """Clips, averages and makes noisy; keeps the budget. Make it with `fixed_clipping` or the other one."""

    def __init__(
        self, wrapper: FixedClipping | AdaptiveClipping, multipliers: Sequence[float], delta: float
    ) -> None:
        self._wrapper = wrapper
        self._budget = Budget(multipliers, delta)

    @property
    def clipping_norm(self) -> float:
        """The norm that updates are clipped to in the next release."""
        return float(self._wrapper.clipping_norm)

    def charge(self, nodes: Collection[int]) -> Spent:
        """A round of these nodes begins."""
        return self._budget.charge(nodes, self.clipping_norm)

    def snapshot(self) -> dict[str, Any]:
        """The budget, and the norm that it has come to."""
        return {"rounds": self._budget.snapshot(), "clipping norm": self.clipping_norm}

    def restore(self, snapshot: Mapping[str, Any], renamed: Mapping[int, int]) -> None:
        """Go on with these."""
        self._budget.restore(snapshot["rounds"], renamed)
        self._wrapper.clipping_norm = np.float64(snapshot["clipping norm"])

    def release(self, current: Vector, trained: Sequence[Vector]) -> Vector:
        """The mean of at least one trained vector, clipped around the current one, with noise; float32.

        Clipped as one vector, whatever tensors are in it, in double precision: rounding could exceed the
        norm.
        """
        self._wrapper.current_arrays = _record(current)
        self._wrapper.num_sampled_clients = len(trained)
        # An update of nothing has norm 0, by which Flower divides.
        with noise_of_the_system(), np.errstate(divide="ignore"):
            arrays, _ = self._wrapper.aggregate_train(0, [_reply(vector) for vector in trained])
        assert arrays is not None
        return arrays[ARRAYS].numpy().astype(np.float32)


FixedClipping = DifferentialPrivacyServerSideFixedClipping


class AdaptiveClipping(DifferentialPrivacyServerSideAdaptiveClipping):
    """Flower's adaptive clipping (Andrew et al. 2021, arXiv 1905.03871), with the norm put right.

    In Flower 1.41 the norm falls when many updates are clipped, and so away from the quantile; and it has
    changed already when the noise is drawn, which may then be too small for what was clipped.
    """

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """A round with the norm that it began with."""
        self._next_norm = self.clipping_norm
        released = super().aggregate_train(server_round, replies)
        self.clipping_norm = self._next_norm
        return released

    def _geometric_update(self, clipped_fraction: float) -> None:
        share = min(max(clipped_fraction, 0.0), 1.0)  # with its noise it may be anything
        step = self.clip_norm_lr * (share - self.target_clipped_quantile)
        self._next_norm = self.clipping_norm * math.exp(step)


def fixed_clipping(norm: float, noise_multiplier: float, delta: float) -> CentralPrivacy:
    """Clipping to the same norm in all rounds. Raises `ConfigError` without dp-accounting."""
    # numpy's float divides by zero where Python's raises.
    wrapper = FixedClipping(FedAvg(), noise_multiplier, np.float64(norm), 1)
    return CentralPrivacy(wrapper, (noise_multiplier,), delta)


def adaptive_clipping(norm: float, noise_multiplier: float, delta: float) -> CentralPrivacy:
    """Clipping to a norm that begins so and goes after the median of the updates' norms.

    For that the number of clipped updates is released as well, with noise of its own. A node can change it by
    one. Raises `ConfigError` without dp-accounting.
    """
    wrapper = AdaptiveClipping(
        FedAvg(),
        noise_multiplier,
        1,
        initial_clipping_norm=np.float64(norm),
        clipped_count_stddev=COUNT_NOISE * noise_multiplier,
    )
    return CentralPrivacy(wrapper, (wrapper.noise_multiplier, wrapper.clipped_count_stddev), delta)


def private(privacy: CentralPrivacy) -> MakeAdapter:
    """One adapter for all nodes, of which each update is released as `privacy` says."""

    def make(layout: AdapterLayout, aggregation: str) -> GlobalAdapter:
        if aggregation != FACTORWISE:
            raise ConfigError(
                f"central privacy knows what one node can change in a factorwise mean only, and aggregation "
                f"is {aggregation!r}: use aggregation = 'factorwise'"
            )
        return PrivateForAll(layout, privacy)

    return make


class PrivateForAll(OneForAll):
    """The adapter under one key; weights of nodes are not looked at."""

    def __init__(self, layout: AdapterLayout, privacy: CentralPrivacy) -> None:
        super().__init__(layout, FACTORWISE)
        self._privacy = privacy

    def combine(self, answers: Iterable[Answer]) -> Combined:
        """The noisy mean. All opened adapters of the round are in memory together."""
        trained: list[Vector] = []
        refused = take_all(
            answers, lambda answer: trained.append(self._vector(answer.uploads[ARRAYS].opened()))
        )
        current = flatten(to_state(self._arrays), self._layout)
        return Combined(unflatten(self._privacy.release(current, trained), self._layout), None, refused)

    def _vector(self, state: State) -> Vector:
        vector = flatten(state, self._layout)
        if not np.isfinite(vector).all():
            raise NonFiniteError("it holds NaN or infinity, which cannot be clipped")
        return vector


def _record(vector: Vector) -> ArrayRecord:
    return ArrayRecord({ARRAYS: Array(vector.astype(np.float64))})


def _reply(vector: Vector) -> Message:
    """As Flower's wrapper wants to see what a node has trained: all nodes weigh the same."""
    metadata = Metadata(0, "", 0, 0, "", "", 0.0, 1.0, "train")
    content = RecordDict({ARRAYS: _record(vector), "metrics": MetricRecord({"num-examples": 1})})
    return make_message(metadata, content=content)
