"""What takes the place of the mean where some clients may lie: rules on numbers, whatever these stand for.

Two families. Rules by coordinate look at one number at a time. Rules by distance look at the clients' updates
as points of a Euclidean space, of which their inner products tell all that is needed, and answer with a share
for each: they work the same on vectors and on ΔW that nobody forms.

No rule looks at what clients say of themselves, such as numbers of examples: that may be a lie, too. Each
client counts as one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedkron.aggregation.products import Array
from fedkron.errors import ConfigError

MEAN = "mean"

_SMOOTHING = 1e-6  # of the distances to the start: a client this near draws no more than one that far
_MAX_STEPS = 1000
_SHARE_TOLERANCE = 1e-10


@dataclass(frozen=True, slots=True)
class RobustRule:
    """A name in `ROBUST_RULES`, and the share of a round's uploads that may come from attackers, below 1/2.

    Raises `ConfigError` for a rule that does not exist and a share that is not from 0 to below 1/2.
    """

    name: str = MEAN
    attackers: float = 0.2

    def __post_init__(self) -> None:
        if self.name not in ROBUST_RULES:
            raise ConfigError(
                f"robust rule {self.name!r} does not exist: use one of {', '.join(ROBUST_RULES)}"
            )
        if not 0 <= self.attackers < 0.5:
            raise ConfigError(f"the share of attackers is {self.attackers}: it must be from 0 to below 0.5")

    @property
    def is_mean(self) -> bool:
        """Whether this is the weighted mean, which withstands nobody."""
        return self.name == MEAN

    def tolerated(self, uploads: int) -> int:
        """How many of so many uploads may come from attackers."""
        return math.floor(self.attackers * uploads + 1e-9)  # 0.29 · 100 is a little less than 29

    def weight(self, claimed: float) -> float:
        """What a client counts: what it claims in the mean, and one where it may lie."""
        return claimed if self.is_mean else 1.0


def trimmed_mean(values: Array, attackers: int) -> Array:
    """Mean over the first axis without the `attackers` lowest and highest numbers of each coordinate.

    Yin et al. 2018, arXiv 1803.01498, definition 2. `values` (n, …) float64, n > 2 · attackers; sorts it.
    """
    values.sort(axis=0)
    mean: Array = values[attackers : len(values) - attackers].mean(axis=0)
    return mean


def median(values: Array, attackers: int) -> Array:  # noqa: ARG001
    """The middle of each coordinate, of two the mean, whoever many lie (Yin et al. 2018, definition 1)."""
    return trimmed_mean(values, (len(values) - 1) // 2)


def clipped(gram: Array, attackers: int) -> Array:  # noqa: ARG001
    """Shares of the mean of updates that are clipped to the median of their norms.

    Centred clipping (Karimireddy et al. 2021, arXiv 2012.10333) around what was sent, with this round's
    median norm for the radius, which is some honest client's or less while most are honest.
    """
    norms = np.sqrt(np.diag(gram))
    kept = np.median(norms) / np.maximum(norms, np.finfo(np.float64).tiny)
    shares: Array = np.minimum(kept, 1.0) / len(gram)
    return shares


def geometric_median(gram: Array, attackers: int) -> Array:  # noqa: ARG001
    """Shares of the point whose distances to the updates have the least sum.

    Smoothed Weiszfeld algorithm (Pillutla et al. 2019, RFA, arXiv 1912.13445, algorithm 2) with equal
    weights, from the mean of the smallest ball around an update that holds more than half of them: far
    from attackers that are far from it, however far.
    """
    distances = np.sqrt(squared_distances(gram))
    most = len(gram) // 2 + 1
    near = np.argsort(distances, axis=1, kind="stable")[:, :most]
    radii = np.take_along_axis(distances, near, axis=1)[:, -1]
    centre = int(np.argmin(radii))
    shares = np.zeros(len(gram))
    shares[near[centre]] = 1 / most
    if radii[centre] == 0:  # more than half are the same: that is the point
        return shares
    for _ in range(_MAX_STEPS):
        image = gram @ shares
        squares = np.diag(gram) - 2 * image + shares @ image
        reach = np.maximum(np.sqrt(np.maximum(squares, 0)), _SMOOTHING * radii[centre])
        before, shares = shares, 1 / reach
        shares /= shares.sum()
        if np.allclose(shares, before, rtol=_SHARE_TOLERANCE, atol=0):
            break
    return shares


def krum(gram: Array, attackers: int) -> Array:
    """The one update with the least sum of squared distances to its n − f − 2 nearest ones.

    Blanchard et al. 2017, "Machine Learning with Adversaries". Raises `ConfigError` below 2f + 3 uploads.
    """
    return _first(_by_score(gram, attackers, "krum"), 1)


def multi_krum(gram: Array, attackers: int) -> Array:
    """The mean of the n − f − 2 updates that Krum would take first: no attacker gets above 1 / (f + 1).

    As many as there is a proof for (Damaskinos et al. 2019, AggregaThor). Raises `ConfigError` as `krum`.
    """
    return _first(_by_score(gram, attackers, "multi-krum"), len(gram) - attackers - 2)


def squared_distances(gram: Array) -> Array:
    """Between points with these inner products, (n, n) both, float64."""
    squares = np.diag(gram)
    distances: Array = np.maximum(squares[:, None] + squares - 2 * gram, 0)
    np.fill_diagonal(distances, 0)
    return distances


def _by_score(gram: Array, attackers: int, name: str) -> npt.NDArray[np.intp]:
    count = len(gram)
    if count < 2 * attackers + 3:
        raise ConfigError(
            f"robust rule {name!r} needs at least {2 * attackers + 3} uploads to withstand {attackers} "
            f"attackers, and there are {count}: lower robust.attackers, choose more clients per round, or "
            "take geometric-median, trimmed-mean or median"
        )
    nearest = np.sort(squared_distances(gram), axis=1)[:, 1 : count - attackers - 1]
    # Two nearest neighbours may have the same score: the smaller update then, not the first one.
    return np.lexsort((np.diag(gram), nearest.sum(axis=1)))


def _first(order: npt.NDArray[np.intp], count: int) -> Array:
    shares = np.zeros(len(order))
    shares[order[:count]] = 1 / count
    return shares


BY_COORDINATE: Mapping[str, Callable[[Array, int], Array]] = {"median": median, "trimmed-mean": trimmed_mean}
"""Numbers (n, …), in float64, and how many clients may lie: one number for each coordinate."""

BY_DISTANCE: Mapping[str, Callable[[Array, int], Array]] = {
    "clip": clipped,
    "geometric-median": geometric_median,
    "krum": krum,
    "multi-krum": multi_krum,
}
"""Inner products (n, n) of the updates, and how many clients may lie: shares, together at most one."""

ROBUST_RULES = (MEAN, "clip", "median", "trimmed-mean", "geometric-median", "krum", "multi-krum")
"""All names that a run config may use."""

PLAIN_MEAN = RobustRule()
