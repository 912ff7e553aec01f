"""Groups of clients whose updates point the same way, found from a short sketch of each update.

Clients that learn different things pull an adapter apart; those that learn the same pull it in the same
direction. So clients are grouped by the cosine of their updates (Sattler, Müller and Samek 2019, "Clustered
Federated Learning", arXiv 1910.01991), here with average linkage. The server does not keep the updates for
that, but a count sketch of each (Charikar, Chen and Farach-Colton 2002, "Finding Frequent Items in Data
Streams"), which keeps inner products.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.cluster.hierarchy import cut_tree, linkage

from fedkron.errors import AdapterError, ConfigError
from fedkron.layout import Vector

Sketch = npt.NDArray[np.floating]
"""One sketch, (width,), or one a row."""

Labels = npt.NDArray[np.intp]

NO_CLUSTER = -1
"""Label of a zero update: it has no direction, hence no cluster; its node stays where it is."""

MAX_WIDTH = 2**15

_BLOCK = 2**15  # numbers at a time: they stay in the cache


@dataclass(frozen=True, slots=True)
class UpdateSketch:
    """A random linear map from updates of `size` numbers to sketches of `width`; equal maps for equal seeds.

    Each number is added to one entry of the sketch, or subtracted from it, drawn at random. The inner product
    of two sketches is an unbiased estimate of that of the updates x and y, with variance at most (‖x‖²·‖y‖² +
    ⟨x, y⟩²) / width: the cosine of unlike updates has a standard error of 1/√width, 0.0055 at the default
    (128 KiB a client). Cosines of real updates of one task are 0.1, of different tasks 0.04: a few hundred
    numbers do not tell them apart. Only sketches of the same map can be compared.

    Raises `ConfigError` unless 1 ≤ width ≤ `MAX_WIDTH`.
    """

    size: int
    width: int = MAX_WIDTH
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.width <= MAX_WIDTH:
            raise ConfigError(f"a sketch has width {self.width}: it must be between 1 and {MAX_WIDTH}")

    def of(self, update: Vector) -> Sketch:
        """Sketch of one update, (size,) to (width,), float32.

        Raises `AdapterError` for an update of another size, or with NaN or infinity.
        """
        if update.shape != (self.size,):
            raise AdapterError(f"an update has shape {list(update.shape)}, this sketch is of [{self.size}]")
        rng = np.random.default_rng(self.seed)
        sums = np.zeros(2 * self.width)
        for start in range(0, self.size, _BLOCK):
            part = update[start : start + _BLOCK]
            # The first half of the entries is added up, the other one subtracted.
            entries = rng.integers(2 * self.width, size=part.size, dtype=np.uint16)
            sums += np.bincount(entries, weights=part, minlength=2 * self.width)
        if not np.isfinite(sums).all():
            raise AdapterError("an update holds NaN or infinity: refuse it before it is sketched")
        added, subtracted = sums.reshape(2, self.width)
        return (added - subtracted).astype(np.float32)


def clusters_of(sketches: Sketch, count: int) -> Labels:
    """Label of each of K sketches, (K, width) to (K,): `count` clusters, numbered by first appearance.

    Average linkage on the cosine distance: the two clusters whose members are most alike in the mean are
    joined until `count` are left. Clients in another order get the same clusters, unless distances are
    equal. Memory is O(K²). A zero sketch gets `NO_CLUSTER` and has no influence on the others.

    Raises `AdapterError` for sketches that are no finite matrix, `ConfigError` when `count` is below one or
    above the number of sketches that are not zero.
    """
    if sketches.ndim != 2 or not np.isfinite(sketches).all():
        raise AdapterError(f"sketches are one finite row for each client, not {list(sketches.shape)}")
    directed = np.flatnonzero(sketches.any(axis=1))
    if not 1 <= count <= len(directed):
        raise ConfigError(
            f"{count} clusters were asked for: it must be at least 1, and at most the number of updates that "
            f"are not zero ({len(directed)} of {len(sketches)})"
        )
    labels = np.full(len(sketches), NO_CLUSTER, np.intp)
    labels[directed] = _linked(sketches[directed], count)
    return labels


def centroids_of(sketches: Sketch, labels: Labels) -> Sketch:
    """What a node that comes later is compared with, (clusters, width): mean unit sketch of each cluster.

    Raises `ConfigError` when the labels are not those of `clusters_of` for as many sketches.
    """
    found = np.unique(labels[labels != NO_CLUSTER])
    if labels.shape != sketches.shape[:1] or not np.array_equal(found, np.arange(len(found))):
        raise ConfigError(f"{len(labels)} labels {found.tolist()} do not belong to {len(sketches)} sketches")
    units = _units(sketches)
    return np.array([units[labels == label].mean(axis=0) for label in found])


def nearest_cluster(sketches: Sketch, centroids: Sketch) -> Labels:
    """Labels of the clusters that average linkage would put new sketches in, (…, width) to (…).

    `NO_CLUSTER` for a zero one. Raises `AdapterError` when sketches have another width than the centroids, or
    are not finite.
    """
    if sketches.shape[-1:] != centroids.shape[1:] or not np.isfinite(sketches).all():
        raise AdapterError(
            f"sketches of {centroids.shape[1]} finite numbers are needed, not {list(sketches.shape)}"
        )
    # The mean cosine to a cluster's members is the inner product with the mean of their units.
    nearest = np.argmax(sketches @ centroids.T, axis=-1)
    return np.where(sketches.any(axis=-1), nearest, NO_CLUSTER)


def _linked(sketches: Sketch, count: int) -> Labels:
    if len(sketches) == 1:
        return np.zeros(1, np.intp)
    tree = linkage(sketches, method="average", metric="cosine")
    labels: Labels = cut_tree(tree, n_clusters=[count])[:, 0].astype(np.intp)
    return labels


def _units(sketches: Sketch) -> Sketch:
    """Rows of norm one, float64; zero rows stay zero."""
    rows = sketches.astype(np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms == 0, 1, norms)
