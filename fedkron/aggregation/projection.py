"""The weighted mean of Kronecker products, projected on one: never forming any of them.

The mean of K products A_k ⊗ (B1_k·B2_k) is not such a product. In Van Loan's rearrangement (Van Loan and
Pitsianis 1993, "Approximation with Kronecker products") it is the sum of the vec(A_k)·vec(B_k)ᵀ, so that
the nearest single one is a nearest rank-one matrix, here with a second factor of rank r. QR of the stacked
factors leaves a small core tensor, in which we alternate: given a, the best B is a truncated SVD; given B,
the best a is a projection.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

_DIRECTION_TOLERANCE = 1e-10  # of the unit vector a; the error of the product is of second order in it
_MAX_ALTERNATIONS = 200
_CANCELLED = 1e-12  # a mean this much smaller than its terms is float64 rounding noise
_RANK_TOLERANCE = np.finfo(np.float32).eps  # float32 factors do not tell smaller singular values from zero


@dataclass(frozen=True, slots=True)
class Products:
    """K products A_k ⊗ (B1_k·B2_k), float64: `A` (K, d_A2, d_A1), `B1` (K, d_B2, r), `B2` (K, r, d_B1)."""

    A: Array
    B1: Array
    B2: Array


@dataclass(frozen=True, slots=True)
class Projection:
    """One product A ⊗ (B1·B2), and how far (squared Frobenius norms) it is from the mean it stands for."""

    A: Array
    B1: Array
    B2: Array
    squared_error: float
    squared_norm: float
    """Of the mean itself."""


@dataclass(frozen=True, slots=True)
class _Mean:
    """The mean in Tucker form: Σ_i kron(row i of `left`, Q1 · core[i] · Q2ᵀ), all bases orthonormal."""

    left: Array  # (q_a, d_A2·d_A1)
    core: Array  # (q_a, q_1, q_2)
    Q1: Array  # (d_B2, q_1)
    Q2: Array  # (d_B1, q_2)
    norm: float
    bound: float
    """Mean of the norms of the terms: what `norm` would be if nothing cancelled."""


@dataclass(frozen=True, slots=True)
class Nearest:
    """The product nearest to a mean, in the mean's bases: unit `a` (q_a,), and U·diag(S)·Vt of rank ≤ r."""

    a: Array
    U: Array
    S: Array
    Vt: Array

    @property
    def matrix(self) -> Array:
        """The product without its unit `a`, dense."""
        return (self.U * self.S) @ self.Vt


def project(products: Products, shares: Array) -> Projection:
    """The product of the factors' shapes nearest (Frobenius) to the mean of `products`.

    `shares`, shape (K,), are non-negative and add up to one. The alternation starts from the leading left
    singular vector of the rearranged mean, which is where the optimum is when the rank does not bind; it
    ends in a local optimum. A mean of zero projects on the mean factors.
    """
    mean = _mean(products, shares)
    if mean.norm <= _CANCELLED * mean.bound:
        return _zero(products, shares, mean.bound)
    nearest = alternate(mean.core, rank=products.B2.shape[1])
    residual = mean.core - np.multiply.outer(nearest.a, nearest.matrix)
    A, B1, B2 = _gauge(nearest, mean, products, shares)
    return Projection(A, B1, B2, float(np.sum(residual**2)), mean.norm**2)


def _mean(products: Products, shares: Array) -> _Mean:
    count, d_B2, rank = products.B1.shape
    d_B1 = products.B2.shape[2]
    left, R0 = np.linalg.qr(products.A.reshape(count, -1).T)
    Q1, R1 = np.linalg.qr(products.B1.transpose(1, 0, 2).reshape(d_B2, count * rank))
    Q2, R2 = np.linalg.qr(products.B2.transpose(2, 0, 1).reshape(d_B1, count * rank))
    tall = R1.reshape(-1, count, rank).transpose(1, 0, 2)
    wide = R2.reshape(-1, count, rank).transpose(1, 2, 0)
    terms = tall @ wide  # (K, q_1, q_2): B1_k·B2_k in the bases Q1 and Q2
    core = np.tensordot(R0 * shares, terms, axes=1)
    bound = float(shares @ (np.linalg.norm(R0, axis=0) * np.linalg.norm(terms, axis=(1, 2))))
    return _Mean(left.T, core, Q1, Q2, float(np.linalg.norm(core)), bound)


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


def _gauge(nearest: Nearest, mean: _Mean, products: Products, shares: Array) -> tuple[Array, Array, Array]:
    """Of all A, B1, B2 with the nearest product, those from which training goes on undisturbed.

    B2 is random and B1 zero when training starts, and optimizers and learning rates are tuned for that: a
    balanced split, √S to either side, would shrink B2 by orders of magnitude. So B2 keeps the clients'
    size and, by orthogonal Procrustes, turns as near as possible to their mean; B1 takes the rest. The
    size is the mean of the norms, not the norm of the mean: that one vanishes where clients cancel.
    """
    mean_A = np.tensordot(shares, products.A, axes=1)
    mean_B2 = np.tensordot(shares, products.B2, axes=1)
    rank = mean_B2.shape[0]
    size_A = float(shares @ np.linalg.norm(products.A, axis=(1, 2)))
    size_B2 = float(shares @ np.linalg.norm(products.B2, axis=(1, 2))) / np.sqrt(rank)
    unit_A = (nearest.a @ mean.left).reshape(mean_A.shape)
    sign = 1.0 if np.sum(unit_A * mean_A) >= 0 else -1.0

    rows = _completed(nearest.Vt @ mean.Q2.T, mean_B2)
    P, _, Qt = np.linalg.svd(mean_B2 @ rows.T)
    turn = P @ Qt
    US = mean.Q1 @ (nearest.U * nearest.S)
    B1 = US @ turn.T[: nearest.S.size] / (size_A * size_B2)
    return sign * size_A * unit_A, sign * B1, size_B2 * turn @ rows


def _completed(Vt: Array, mean_B2: Array) -> Array:
    """Vt with rows added up to the shape of `mean_B2`: directions of its that Vt does not have.

    They carry nothing in the product now, but a B2 without them could train on only in fewer than r.
    """
    rank, kept = mean_B2.shape[0], Vt.shape[0]
    if kept == rank:
        return Vt
    directions = np.linalg.svd(mean_B2 - mean_B2 @ Vt.T @ Vt, full_matrices=False)[2][: rank - kept]
    rows = np.zeros_like(mean_B2)
    rows[:kept] = Vt
    rows[kept : kept + len(directions)] = directions
    return rows


def _zero(products: Products, shares: Array, bound: float) -> Projection:
    """The mean factors, for a mean of zero: B1 stays zero at the start, and nothing stops training."""
    A, B1, B2 = (np.tensordot(shares, factor, axes=1) for factor in (products.A, products.B1, products.B2))
    squared_norm = np.sum(A**2) * np.sum((B1.T @ B1) * (B2 @ B2.T))
    if squared_norm > (_CANCELLED * bound) ** 2:  # the products cancel, but not the factors
        B1 = np.zeros_like(B1)
    return Projection(A, B1, B2, 0.0, 0.0)
