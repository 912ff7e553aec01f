"""A stream of Kronecker products, summed in Tucker form: none of them is formed, and memory stays flat.

In Van Loan's rearrangement (Van Loan and Pitsianis 1993, "Approximation with Kronecker products") the sum of
products A_t ⊗ (B1_t·B2_t) is a tensor with one mode for A, one for the rows and one for the columns of B. Its
Tucker form needs bases of what the factors span, which QR gives, and a core as small as these.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fedkron.aggregation.products import Array, Products, stacked

MAX_RANK = 128
"""Directions kept in each mode. More are cut off, the weakest first; how much that was, is kept account of.

Exact for 16 clients of rank 8 whatever they are, and for any number that move in a common subspace. For
Mistral-7B with d_A2 = 16 all bases and cores together take at most 1.6 GB, what is pending 0.4 GB.
"""

_CANCELLED = 1e-12  # a sum this much smaller than its terms is float64 rounding noise


@dataclass(frozen=True, slots=True)
class Tucker:
    """Σ_i left_i ⊗ (Q1 · core_i · Q2ᵀ), float64, all three bases orthonormal.

    `left` is (q_a, d_A2, d_A1), `core` (q_a, q_1, q_2), `Q1` (d_B2, q_1), `Q2` (d_B1, q_2).
    """

    left: Array
    core: Array
    Q1: Array
    Q2: Array

    @staticmethod
    def zero(grid: tuple[int, int], sides: tuple[int, int]) -> Tucker:
        """Zero, without a single direction, of `grid` (d_A2, d_A1) and `sides` (d_B2, d_B1)."""
        left, Q1, Q2 = np.empty((0, *grid)), np.empty((sides[0], 0)), np.empty((sides[1], 0))
        return Tucker(left, np.empty((0, 0, 0)), Q1, Q2)

    @property
    def grid(self) -> tuple[int, int]:
        """(d_A2, d_A1)."""
        return self.left.shape[1], self.left.shape[2]

    @property
    def sides(self) -> tuple[int, int]:
        """(d_B2, d_B1)."""
        return self.Q1.shape[0], self.Q2.shape[0]

    @property
    def left_columns(self) -> Array:
        """`left` as a matrix of orthonormal columns, (d_A2·d_A1, q_a)."""
        return self.left.reshape(len(self.left), self.left.shape[1] * self.left.shape[2]).T

    @property
    def norm(self) -> float:
        """Frobenius norm."""
        largest = self.largest
        return largest * float(np.linalg.norm(self.core / largest)) if largest else 0.0

    @property
    def largest(self) -> float:
        """Largest magnitude in the core: nothing of the core divided by it overflows when squared."""
        return float(np.abs(self.core).max(initial=0.0))

    @property
    def size(self) -> int:
        """Number of numbers kept."""
        return self.left.size + self.core.size + self.Q1.size + self.Q2.size

    def times(self, factor: float) -> Tucker:
        """The same times a number."""
        return replace(self, core=factor * self.core)

    def products(self) -> Products:
        """The same as q_a products of rank min(q_1, q_2), float64."""
        count, q_1, q_2 = self.core.shape
        Q1 = np.broadcast_to(self.Q1, (count, *self.Q1.shape))
        Q2t = np.broadcast_to(self.Q2.T, (count, *self.Q2.T.shape))
        if q_1 <= q_2:
            return Products(self.left, Q1, self.core @ self.Q2.T)
        return Products(self.left, self.Q1 @ self.core, Q2t)


class TuckerSum:
    """Σ w·(A ⊗ B1·B2) over a stream of products that may differ in rank.

    Exact (float64) as long as the bases need at most `max_rank` directions in a mode (`None`: always); then
    truncated by HOSVD (De Lathauwer et al. 2000) every time that this many pending columns are taken in.
    """

    def __init__(
        self, grid: tuple[int, int], sides: tuple[int, int], max_rank: int | None = MAX_RANK
    ) -> None:
        self._sum = Tucker.zero(grid, sides)
        self._max_rank = max_rank
        self._pending: list[tuple[Products, float]] = []
        self._pending_rank = 0
        self.cut = 0.0
        """Upper bound of the norm of all that was cut off: what each truncation cut, added up."""
        self.bound = 0.0
        """Σ |w|·‖A‖·‖B1‖·‖B2‖: what the norm might be if nothing cancelled."""

    @property
    def grid(self) -> tuple[int, int]:
        """(d_A2, d_A1)."""
        return self._sum.grid

    @property
    def size(self) -> int:
        """Number of numbers kept."""
        return self._sum.size + sum(products.size for products, _ in self._pending)

    def add(self, products: Products, weight: float) -> None:
        """Take in w·A ⊗ (B1·B2) for each of `products`; kept in float32 until folded into the core."""
        if weight == 0:
            return
        self._pending.append((products.as_float32(), weight))
        self._pending_rank += len(products) * products.rank
        self.bound += abs(weight) * float(products.bounds.sum())
        if self._pending_rank >= (self._max_rank or MAX_RANK):
            self._fold()

    def total(self) -> Tucker:
        """The sum of all that was added: exactly zero where everything cancels but rounding errors."""
        self._fold()
        if self._sum.norm <= _CANCELLED * self.bound:
            return Tucker.zero(self._sum.grid, self._sum.sides)
        return self._sum

    def _fold(self) -> None:
        if not self._pending:
            return
        folded = _sum_of(self._sum, _by_rank(self._pending))
        self._pending, self._pending_rank = [], 0
        self._sum, cut = reduced(folded, self._max_rank)
        self.cut += cut


def reduced(tucker: Tucker, max_rank: int | None = None, floor: float = 0.0) -> tuple[Tucker, float]:
    """In fewer directions, and the norm of what was cut off; the rest is orthogonal to it.

    At most `max_rank` directions stay in each mode, and in no mode is more cut off below that than `floor`.
    """
    largest = tucker.largest
    if largest == 0:
        return Tucker.zero(tucker.grid, tucker.sides), 0.0
    core = tucker.core / largest
    bases = [tucker.left_columns, tucker.Q1, tucker.Q2]
    cut = 0.0
    for mode in range(3):
        count = core.shape[mode]
        if floor == 0 and (max_rank is None or count <= max_rank):
            continue
        unfolded = np.moveaxis(core, mode, 0).reshape(count, -1)
        V = np.linalg.eigh(unfolded @ unfolded.T)[1][:, ::-1]
        rotated = V.T @ unfolded
        # Of what is cut, not of eigenvalues: these are exact to 1e-16 of the largest only, before the root.
        tails = np.sqrt(np.cumsum(np.sum(rotated**2, axis=1)[::-1])[::-1])
        kept = min(int(np.count_nonzero(tails * largest > floor)), max_rank or count)
        if kept == 0:
            return Tucker.zero(tucker.grid, tucker.sides), tucker.norm
        cut = float(np.hypot(cut, tails[kept])) if kept < count else cut
        others = [n for i, n in enumerate(core.shape) if i != mode]
        core = np.moveaxis(rotated[:kept].reshape(kept, *others), 0, mode)
        bases[mode] = bases[mode] @ V[:, :kept]
    left = np.ascontiguousarray(bases[0].T).reshape(-1, *tucker.grid)
    return Tucker(left, np.ascontiguousarray(largest * core), bases[1], bases[2]), largest * cut


def _by_rank(pending: list[tuple[Products, float]]) -> list[Products]:
    """Products of equal rank together, in float64, with their weights in A."""
    groups: dict[int, list[Products]] = {}
    for products, weight in pending:
        groups.setdefault(products.rank, []).append(products.times(weight))
    return [stacked(group) for group in groups.values()]


def _sum_of(tucker: Tucker, groups: list[Products]) -> Tucker:
    """`tucker` plus all products, in bases of both."""
    q_a, q_1, q_2 = tucker.core.shape
    # Of [basis, new columns]: orthonormal also where the columns are nearly in the basis.
    left, R0 = np.linalg.qr(np.hstack([tucker.left_columns, *(p.A.reshape(len(p), -1).T for p in groups)]))
    Q1, R1 = np.linalg.qr(np.hstack([tucker.Q1, *(_columns(p.B1) for p in groups)]))
    Q2, R2 = np.linalg.qr(np.hstack([tucker.Q2, *(_columns(p.B2.transpose(0, 2, 1)) for p in groups)]))
    core = np.tensordot(R0[:, :q_a], R1[:, :q_1] @ tucker.core @ R2[:, :q_2].T, axes=1)
    terms, columns = q_a, np.array([q_1, q_2])
    for products in groups:
        count, rank = len(products), products.rank
        ends = columns + count * rank
        tall = R1[:, columns[0] : ends[0]].reshape(-1, count, rank).transpose(1, 0, 2)
        wide = R2[:, columns[1] : ends[1]].reshape(-1, count, rank).transpose(1, 2, 0)
        core += np.tensordot(R0[:, terms : terms + count], tall @ wide, axes=1)
        terms, columns = terms + count, ends
    return Tucker(np.ascontiguousarray(left.T).reshape(-1, *tucker.grid), core, Q1, Q2)


def _columns(factors: Array) -> Array:
    """(T, d, r) as (d, T·r)."""
    return factors.transpose(1, 0, 2).reshape(factors.shape[1], -1)
