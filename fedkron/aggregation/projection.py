"""A sum of Kronecker products, projected on one: never forming any of them.

In Van Loan's rearrangement (Van Loan and Pitsianis 1993, "Approximation with Kronecker products") a sum of
products A_k ⊗ (B1_k·B2_k) is the sum of the vec(A_k)·vec(B_k)ᵀ, so that the nearest single one is a nearest
rank-one matrix, here with a second factor of rank r. In the small core of the Tucker form we alternate: given
a, the best B is a truncated SVD; given B, the best a is a projection.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from fedkron.aggregation.products import Array
from fedkron.aggregation.tucker import Tucker

_DIRECTION_TOLERANCE = 1e-10  # of the unit vector a; the error of the product is of second order in it
_MAX_ALTERNATIONS = 200
_VANISHED = 1e-5  # a mean factor this much smaller than the factors is float32 rounding noise
_RANK_TOLERANCE = np.finfo(np.float32).eps  # float32 factors do not tell smaller singular values from zero


@dataclass(frozen=True, slots=True)
class Reference:
    """Factors near to which the projection's factors are to be: as a rule, the mean of the clients' own.

    `A` (d_A2, d_A1), `B1` (d_B2, r), `B2` (r, d_B1). `size_A` and `size_B2` are the norms that A and B2 shall
    have: the mean of the clients' norms, not the norm of their mean, which vanishes where clients cancel.
    """

    A: Array
    B1: Array
    B2: Array
    size_A: float
    size_B2: float


@dataclass(frozen=True, slots=True)
class Projection:
    """The product A ⊗ (B1·B2), float64, and what it lacks of the sum that it stands for."""

    A: Array
    B1: Array
    B2: Array
    residual: Tucker


@dataclass(frozen=True, slots=True)
class Nearest:
    """The product nearest to a sum, in its bases: unit `a` (q_a,), and U·diag(S)·Vt of rank ≤ r."""

    a: Array
    U: Array
    S: Array
    Vt: Array

    @property
    def matrix(self) -> Array:
        """The product without its unit `a`, dense."""
        return (self.U * self.S) @ self.Vt


@dataclass(frozen=True, slots=True)
class Loss:
    """Of one module, in norms of A ⊗ (B1·B2) times `scale`: what is lost of `whole`, the mean's own norm.

    `lost` does not know of `cut`, the bound of what was cut off before, nor does `whole`.
    """

    scale: float
    lost: float
    whole: float
    cut: float


def relative_error(losses: Iterable[Loss]) -> float:
    """‖error‖ / ‖mean‖ over all modules together: 0 is exact, 1 has lost everything; 0 for a mean of zero.

    An upper bound where something was cut off; infinite where that may have been the whole mean.
    """
    lost = whole = 0.0
    for loss in losses:
        lost += loss.scale**2 * (loss.lost + loss.cut) ** 2
        whole += loss.scale**2 * max(loss.whole - loss.cut, 0.0) ** 2
    if lost == 0:
        return 0.0
    return math.sqrt(lost / whole) if whole else math.inf


def project(mean: Tucker, reference: Reference) -> Projection:
    """The product nearest (Frobenius) to `mean`, in the shapes of `reference` and with factors near to its.

    The alternation starts from the leading left singular vector of the rearranged mean, which is where the
    optimum is when the rank does not bind; it ends in a local optimum. A mean of zero projects on the
    reference with a product of zero.
    """
    if mean.norm == 0:
        return _zero(mean, reference)
    # By a power of two, which is exact: the core of factors near float32's largest has no finite square.
    unit = 2.0 ** math.frexp(mean.largest)[1]
    scaled = alternate(mean.core / unit, rank=len(reference.B2))
    nearest = replace(scaled, S=scaled.S * unit)
    residual = replace(mean, core=mean.core - np.multiply.outer(nearest.a, nearest.matrix))
    return Projection(*_gauge(nearest, mean, reference), residual)


def alternate(core: Array, rank: int) -> Nearest:
    """The a ⊗ B nearest to `core` (a, b2, b1) in Frobenius norm, B of at most `rank`.

    Alternates between the best a for B and the best B for a, from the leading left singular vector of
    Van Loan's rearrangement: exact when `rank` does not bind, otherwise a local optimum.
    """
    gram = np.tensordot(core, core, axes=((1, 2), (1, 2)))
    nearest = _nearest_given(np.linalg.eigh(gram)[1][:, -1], core, rank)
    for _ in range(_MAX_ALTERNATIONS):
        a = np.tensordot(core, nearest.matrix, axes=2)
        a /= np.linalg.norm(a)
        if np.linalg.norm(a - nearest.a) <= _DIRECTION_TOLERANCE:
            break
        nearest = _nearest_given(a, core, rank)
    return nearest


def _nearest_given(a: Array, core: Array, rank: int) -> Nearest:
    U, S, Vt = np.linalg.svd(np.tensordot(a, core, axes=1), full_matrices=False)
    kept = min(rank, int(np.count_nonzero(S / S[0] > _RANK_TOLERANCE)))
    return Nearest(a, U[:, :kept], S[:kept], Vt[:kept])


def _gauge(nearest: Nearest, mean: Tucker, reference: Reference) -> tuple[Array, Array, Array]:
    """Of all A, B1, B2 with the nearest product, those from which training goes on undisturbed.

    B2 is random and B1 zero when training starts, and optimizers and learning rates are tuned for that: a
    balanced split, √S to either side, would shrink B2 by orders of magnitude. So B2 keeps the reference's
    size and, by orthogonal Procrustes, turns as near as possible to it; B1 takes the rest.
    """
    size_A, size_B2 = reference.size_A, reference.size_B2 / math.sqrt(len(reference.B2))
    unit_A = np.tensordot(nearest.a, mean.left, axes=1)
    sign = 1.0 if np.sum(unit_A * reference.A) >= 0 else -1.0

    rows = _completed(nearest.Vt @ mean.Q2.T, reference.B2)
    P, _, Qt = np.linalg.svd(reference.B2 @ rows.T)
    turn = P @ Qt
    US = mean.Q1 @ (nearest.U * nearest.S)
    B1 = US @ turn.T[: nearest.S.size] / (size_A * size_B2)
    return sign * size_A * unit_A, sign * B1, size_B2 * turn @ rows


def _completed(Vt: Array, wanted: Array) -> Array:
    """Vt with rows added up to the shape of `wanted`: directions of its that Vt does not have.

    They carry nothing in the product now, but a B2 without them could train on only in fewer than r.
    """
    rank, kept = wanted.shape[0], Vt.shape[0]
    if kept == rank:
        return Vt
    directions = np.linalg.svd(wanted - wanted @ Vt.T @ Vt, full_matrices=False)[2][: rank - kept]
    rows = np.zeros_like(wanted)
    rows[:kept] = Vt
    rows[kept : kept + len(directions)] = directions
    return rows


def _zero(mean: Tucker, reference: Reference) -> Projection:
    """The reference itself, for a mean of zero: B1 stays zero at the start, and nothing stops training."""
    A, B1, B2 = reference.A, reference.B1, reference.B2
    if np.linalg.norm(A) * np.linalg.norm(B2) > _VANISHED * reference.size_A * reference.size_B2:
        B1 = np.zeros_like(B1)  # not where A or B2 vanishes: two factors of zero could not be trained
    return Projection(A, B1, B2, mean)
