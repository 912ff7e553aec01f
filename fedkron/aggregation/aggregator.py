"""What every way to combine adapters is: a stream of adapters and weights in, one aggregate out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from fedkron.layout import State


@dataclass(frozen=True, slots=True)
class Aggregate:
    """What the clients learnt together: an adapter, and what it could not hold of their mean.

    `adapter` has the tensors and shapes of the aggregator's layout, float32. `projection_error` is
    ‖mean ΔW - ΔW of the adapter‖ / ‖mean ΔW‖, in Frobenius norms over all modules together, `None` where
    nothing is projected.

    `terms` hold the rest of ΔW, layer by layer: `{path}.terms.A` (T, d_A2, d_A1), `{path}.terms.B1`
    (T, d_B2, r) and `{path}.terms.B2` (T, r, d_B1), float32, the scale α/r already multiplied into A. The
    rest is Σ_t A_t ⊗ (B1_t·B2_t); everybody adds it to the layer's frozen weight, so that base, terms and
    adapter together are exactly the mean. `None` where the adapter is all there is.
    """

    adapter: State
    projection_error: float | None = None
    terms: State | None = None


class Aggregator(Protocol):
    """Streaming: made of an `AdapterLayout`, then `add` for each client, then `finish` once.

    Weights are whatever the caller counts (examples, as a rule): they need not add up to one.
    """

    def add(self, adapter: State, weight: float) -> None:
        """Take in one client's adapter. A refused one leaves the aggregator as it was.

        Raises `AdapterError` for an adapter that does not fit the layout or is not finite, `ConfigError` for
        a weight that is negative, NaN or infinite.
        """

    def finish(self) -> Aggregate:
        """Combine all that were added.

        Raises `AdapterError` when there was none, `ConfigError` when all weights are zero.
        """
