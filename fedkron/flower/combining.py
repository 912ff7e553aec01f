"""From uploads to one aggregate: the seam between what travels and `fedkron.aggregation`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fedkron.aggregation import Aggregate, Aggregator, FactorwiseMean, aggregator
from fedkron.aggregation.weighted_mean import WeightedMean
from fedkron.compression.accumulate import accept
from fedkron.errors import AdapterError
from fedkron.flower.uploads import Packed, Upload
from fedkron.layout import AdapterLayout, State, flatten, unflatten

FACTORWISE = "factorwise"


class Combining(Protocol):
    """An `Aggregator` of uploads."""

    def add(self, upload: Upload, weight: float) -> None:
        """Take in one node's upload; one that is refused, by a `FedKronError`, changes nothing."""

    def finish(self) -> Aggregate:
        """Combine all that were added; raises as `Aggregator.finish` does."""


def combining(name: str, layout: AdapterLayout) -> Combining:
    """A new stream for the aggregation of this name; raises as `aggregator` does."""
    return FactorwiseUploads(layout) if name == FACTORWISE else OpenedUploads(aggregator(name, layout))


@dataclass(frozen=True)
class OpenedUploads:
    """Uploads are decoded one after the other."""

    aggregator: Aggregator

    def add(self, upload: Upload, weight: float) -> None:
        """Take in one node's upload."""
        self.aggregator.add(upload.opened(), weight)

    def finish(self) -> Aggregate:
        """Combine all that were added."""
        return self.aggregator.finish()


@dataclass
class _Lot:
    """Payloads that are changes of the same state, and what they weigh together."""

    reference: State
    mean: WeightedMean
    weight: float = 0.0


class FactorwiseUploads:
    """The mean of each tensor, without decoding any: what was sent plus the mean of the updates.

    Payloads are added up as they are (`fedkron.compression.accumulate`), which takes a third of the time.
    """

    def __init__(self, layout: AdapterLayout) -> None:
        self._layout = layout
        self._lots: dict[int, _Lot] = {}
        self._plain = FactorwiseMean(layout)
        self._plain_weight = 0.0

    def add(self, upload: Upload, weight: float) -> None:
        """Take in one node's upload."""
        if not isinstance(upload, Packed):
            self._plain.add(upload.opened(), weight)
            self._plain_weight += weight
            return
        accepted = accept(upload.payload, self._layout)
        upload.check(accepted.header)
        # Nodes that were sent the same have the same reference; those of one round all do, as a rule.
        key = id(upload.reference)
        lot = self._lots.get(key) or _Lot(upload.reference, WeightedMean(self._layout.size))
        lot.mean.add_with(accepted.add_to, weight, accepted.peak)
        lot.weight += weight
        self._lots[key] = lot

    def finish(self) -> Aggregate:
        """The mean, float32."""
        means = [
            (lot.weight, flatten(lot.reference, self._layout) + lot.mean.finish())
            for lot in self._lots.values()
        ]
        if self._plain_weight or not means:
            plain = flatten(self._plain.finish().adapter, self._layout)
            means.append((self._plain_weight, plain.astype(np.float64)))
        whole = sum(weight for weight, _ in means)
        total = np.zeros(self._layout.size)
        for weight, vector in means:
            total += weight / whole * vector
        with np.errstate(over="ignore"):
            mean = total.astype(np.float32)
        if not np.isfinite(mean).all():
            raise AdapterError("the mean of the uploads is beyond the largest float32: refuse the largest")
        return Aggregate(unflatten(mean, self._layout))
