"""Weights of clients: whatever the caller counts, examples as a rule. They need not add up to one."""

from __future__ import annotations

import math

from fedkron.errors import ConfigError


def checked_weight(weight: float) -> float:
    """The weight of one client. Raises `ConfigError` when it is negative, NaN or infinite."""
    if not (math.isfinite(weight) and weight >= 0):
        raise ConfigError(f"weight is {weight}: use finite weights that are not negative")
    return float(weight)
