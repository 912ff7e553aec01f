"""What the ways to merge tasks do with numbers at the same place: trim, drop, elect signs, average.

`tasks` is (K, …), float64: one array for each of K tasks, all in the same coordinates.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedkron.aggregation.products import Array


def mean(tasks: Array, shares: Array) -> Array:
    """Weighted mean; `shares` (K,) add up to one."""
    total: Array = np.tensordot(shares, tasks, axes=1)
    return total


def trimmed(tasks: Array, density: float) -> Array:
    """Of each task the ⌊density · n⌋ numbers of largest magnitude, the others zero (TIES, step 1)."""
    flat = tasks.reshape(len(tasks), -1)
    kept = np.zeros_like(flat)
    largest = np.argsort(-np.abs(flat), axis=1, kind="stable")[:, : int(density * flat.shape[1])]
    np.put_along_axis(kept, largest, np.take_along_axis(flat, largest, axis=1), axis=1)
    return kept.reshape(tasks.shape)


def dropped(tasks: Array, density: float, rngs: Sequence[np.random.Generator]) -> Array:
    """Each number kept with probability `density` and divided by it, otherwise zero (DARE): unbiased.

    Which ones does not depend on the numbers: task k draws from `rngs[k]`.
    """
    kept = np.array([rng.random(task.shape) < density for task, rng in zip(tasks, rngs, strict=True)])
    return np.where(kept, tasks / density, 0.0)


def agreed_mean(tasks: Array, shares: Array) -> Array:
    """Weighted mean of the tasks whose sign is that of the weighted total (TIES, steps 2 and 3).

    A zero has no sign and does not count; where the total is zero, so is the result.
    """
    agreeing = np.sign(tasks) == np.sign(mean(tasks, shares))
    total, share = mean(tasks * agreeing, shares), mean(agreeing.astype(np.float64), shares)
    return np.divide(total, share, out=np.zeros_like(total), where=share > 0)
