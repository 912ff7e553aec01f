"""Weights of clients: whatever the caller counts (examples, as a rule), made shares of one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fedkron.errors import AdapterError, ConfigError


def shares_of(weights: Sequence[float], count: int) -> npt.NDArray[np.float64]:
    """Weights of `count` adapters divided by their sum, shape (count,), float64.

    Raises `AdapterError` when there is no adapter at all, `ConfigError` when the number of weights is
    another, one is negative, NaN or infinite, or all are zero.
    """
    if count == 0:
        raise AdapterError("there is no adapter to aggregate: wait for at least one client")
    if len(weights) != count:
        raise ConfigError(f"{len(weights)} weights for {count} adapters: give one weight for each adapter")
    values = np.array(weights, np.float64)
    for index, value in enumerate(values):
        if not (np.isfinite(value) and value >= 0):
            raise ConfigError(f"weight {index} is {value}: use finite weights that are not negative")
    if (largest := values.max()) == 0:
        raise ConfigError("all weights are zero: give at least one adapter a positive weight")
    values /= largest  # first: the sum of weights near 1e308 is infinite
    shares: npt.NDArray[np.float64] = values / values.sum()
    return shares
