"""Adapters of several tasks become one, after training: mean, TIES or DARE, without forming any ΔW.

These ways work number by number, hence need coordinates in which the numbers of one task can be compared with
those of another. Factors are none: A ⊗ (B1·B2) can be written with many others. So all adapters of a module
are written exactly as core tensors in common orthonormal bases, merged there, and projected on one adapter.
This is core space merging (Panariello et al. 2025, arXiv 2509.17786), carried over to Kronecker products.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedkron.aggregation.elementwise import agreed_mean, dropped, mean, trimmed
from fedkron.aggregation.product_mean import FactorMeans
from fedkron.aggregation.products import (
    Array,
    Products,
    factors_of,
    product_of,
    product_shapes,
    require_products,
    stacked,
)
from fedkron.aggregation.projection import Loss, Reference, project, relative_error
from fedkron.aggregation.tucker import Tucker
from fedkron.errors import AdapterError, ConfigError
from fedkron.layout import AdapterLayout, ModuleLayout, State, TensorLayout, flatten

METHODS = ("mean", "ties", "dare", "dare_ties")

_RANK_AXES = {"kron_lora": {"B1": 1, "B2": 0}, "lora": {"lora_A": 0, "lora_B": 1}}

_NOTHING = 1e-12  # a direction that carries this much less than the first one is float64 rounding noise


@dataclass(frozen=True, slots=True)
class MergedTasks:
    """The merged adapter, float32, and what it lacks of what the method gave.

    `projection_error` is ‖merged ΔW - ΔW of the adapter‖ / ‖merged ΔW‖ over all modules together.
    """

    adapter: State
    projection_error: float


def merge_tasks(
    adapters: Sequence[State],
    layout: AdapterLayout,
    method: str = "mean",
    *,
    weights: Sequence[float] | None = None,
    density: float = 0.5,
    scaling: float = 1.0,
    seed: int = 0,
    target: AdapterLayout | None = None,
) -> MergedTasks:
    """Merge adapters of one layout into one of `target`, by default the same layout.

    - `mean`: of the ΔW, the best compromise in the sense of least squares. With `scaling` K it is task
      arithmetic (Ilharco et al. 2023, arXiv 2212.04089): their sum.
    - `ties` (Yadav et al. 2023, arXiv 2306.01708): each task keeps the largest of its numbers, a fraction
      `density`; then each number is the mean over the tasks that have the sign of the total.
    - `dare` (Yu et al. 2024, arXiv 2311.03099): each task keeps a random fraction `density`, larger by as
      much; then the mean. `seed` and the adapter itself decide which, not its place in the list.
    - `dare_ties`: numbers dropped as in `dare`, averaged as in `ties`.

    The result is multiplied by `scaling`, called λ in these papers. An adapter of weight 2 counts like two of
    weight 1; weights need not add up to one, default is one each. `target` may have other ranks and scales.
    Tensors trained in full become their weighted mean, whatever the method.

    Raises `ConfigError` for an unknown method, weights that cannot be normalised, a density that is not in
    (0, 1], a scaling that is not positive and finite or a negative seed; `AdapterError` when there is no
    adapter, one does not fit the layout or is not finite, a module's kind is not one product, or the target
    is no other size of the layout.
    """
    _check(method, density, scaling, seed)
    target = target or layout
    require_products(layout, "merged")
    _check_target(layout, target)
    if weights is not None and len(weights) != len(adapters):
        raise ConfigError(f"{len(weights)} weights for {len(adapters)} adapters: give one for each")
    means = FactorMeans(layout)
    relative = [means.add(a, w) for a, w in zip(adapters, weights or [1.0] * len(adapters), strict=True)]
    state, references = means.finish()

    taking_part = [k for k, share in enumerate(relative) if share > 0]
    shares = np.array(relative)[taking_part] / means.shares
    rngs = [_rng(adapters[k], layout, seed) for k in taking_part]
    losses = []
    for module, wanted, near in zip(layout.modules, target.modules, references, strict=True):
        products = stacked([product_of(module, adapters[k]) for k in taking_part])
        tasks = _common(products.times(1.0), shares)
        core = _merged(method, tasks.cores, shares, density, rngs)
        merged = tasks.with_core(scaling * module.scale / wanted.scale * core)
        rank = product_shapes(wanted)[2]
        projection = project(merged, near if rank == len(near.B2) else _resized(near, merged.Q2, rank))
        losses.append(Loss(wanted.scale, projection.residual.norm, merged.norm, 0.0))
        state |= factors_of(wanted, projection.A, projection.B1, projection.B2)
    return MergedTasks(state, relative_error(losses))


def of_rank(layout: AdapterLayout, rank: int) -> AdapterLayout:
    """The same layers and scales α/r with another rank, smaller or larger: a target for `merge_tasks`.

    Raises `ConfigError` for a rank below 1, `AdapterError` for a module whose kind has no rank.
    """
    if rank < 1:
        raise ConfigError(f"rank is {rank}: it must be at least 1")
    return replace(layout, modules=tuple(_of_rank(module, rank) for module in layout.modules))


def delta_cosine(a: State, layout_of_a: AdapterLayout, b: State, layout_of_b: AdapterLayout) -> float:
    """Cosine of two adapters' ΔW over all modules together, from the factors; 0 when one of them is zero.

    Their layouts may differ in rank and scale. Raises `AdapterError` when they differ otherwise, or when a
    module's kind is not one product.
    """
    require_products(layout_of_a, "merged")
    _check_target(layout_of_a, layout_of_b)
    norms = _inner(a, layout_of_a, a, layout_of_a) * _inner(b, layout_of_b, b, layout_of_b)
    return _inner(a, layout_of_a, b, layout_of_b) / norms**0.5 if norms else 0.0


@dataclass(frozen=True, slots=True)
class _Tasks:
    """K products in common bases: product k is Σ_i left_i ⊗ (Q1 · cores[k, i] · Q2ᵀ). As in `Tucker`."""

    left: Array  # (q_a, d_A2, d_A1)
    cores: Array  # (K, q_a, q_1, q_2)
    Q1: Array  # (d_B2, q_1)
    Q2: Array  # (d_B1, q_2)

    def with_core(self, core: Array) -> Tucker:
        return Tucker(self.left, core, self.Q1, self.Q2)


def _common(products: Products, shares: Array) -> _Tasks:
    """The bases are those of the HOSVD (De Lathauwer et al. 2000) of all products as one tensor.

    Each column counts as much as what it carries, so that bases and cores, but for signs, depend neither on
    the order of the tasks nor on which of many equal factorisations they come in.
    """
    A, B1, B2 = products.A, products.B1, products.B2
    a = A.reshape(len(A), -1)
    R1, R2t = np.linalg.qr(B1).R, np.linalg.qr(B2.transpose(0, 2, 1)).R.transpose(0, 2, 1)
    # B1·B2 = Q·(R1·R2ᵀ)·Q'ᵀ, with Q and Q' orthonormal: B1·R2ᵀ has its columns, R1·B2 its rows, but for a
    # rotation, and R1·R2ᵀ its norm.
    size_B = np.linalg.norm(R1 @ R2t, axis=(1, 2))
    size_a, root = np.linalg.norm(a, axis=1), np.sqrt(shares)
    left = _basis((root * size_B)[:, None, None] * a[:, :, None])
    Q1 = _basis((root * size_a)[:, None, None] * (B1 @ R2t))
    Q2 = _basis((root * size_a)[:, None, None] * (R1 @ B2).transpose(0, 2, 1))
    cores = np.einsum("ki,kjl->kijl", a @ left, (Q1.T @ B1) @ (B2 @ Q2))
    return _Tasks(np.ascontiguousarray(left.T).reshape(-1, *A.shape[1:]), cores, Q1, Q2)


def _basis(columns: Array) -> Array:
    """Orthonormal columns (d, q) that span all columns of (K, d, r), those that carry most first."""
    U, S, _ = np.linalg.svd(columns.transpose(1, 0, 2).reshape(columns.shape[1], -1), full_matrices=False)
    return U[:, : np.count_nonzero(_NOTHING * S[0] < S)]


def _merged(
    method: str, cores: Array, shares: Array, density: float, rngs: Sequence[np.random.Generator]
) -> Array:
    match method:
        case "ties":
            core = agreed_mean(trimmed(cores, density), shares)
        case "dare":
            core = mean(dropped(cores, density, rngs), shares)
        case "dare_ties":
            core = agreed_mean(dropped(cores, density, rngs), shares)
        case _:
            core = mean(cores, shares)
    cancelled = np.linalg.norm(core) <= _NOTHING * np.linalg.norm(cores)
    return np.zeros_like(core) if cancelled else core


def _rng(adapter: State, layout: AdapterLayout, seed: int) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(flatten(adapter, layout).data)])


def _of_rank(module: ModuleLayout, rank: int) -> ModuleLayout:
    if module.kind not in _RANK_AXES:
        raise AdapterError(
            f"module {module.path!r} has kind {module.kind!r}: only {' and '.join(_RANK_AXES)} have a rank"
        )
    axes = _RANK_AXES[module.kind]
    factors = []
    for factor in module.factors:
        shape = tuple(rank if axes.get(factor.name) == axis else n for axis, n in enumerate(factor.shape))
        factors.append(TensorLayout(factor.name, shape))
    return replace(module, factors=tuple(factors))


def _resized(reference: Reference, Q2: Array, rank: int) -> Reference:
    """The same with the first rows of B2 only, or with more: the directions of Q2, then zeros."""
    own, d_B1 = reference.B2.shape
    row = reference.size_B2 / own**0.5
    rows = np.vstack([reference.B2, row * Q2.T, np.zeros((rank, d_B1))])[:rank]
    columns = np.hstack([reference.B1, np.zeros((len(reference.B1), rank))])[:, :rank]
    return replace(reference, B1=columns, B2=rows, size_B2=row * rank**0.5)


def _inner(a: State, layout_of_a: AdapterLayout, b: State, layout_of_b: AdapterLayout) -> float:
    return sum(
        first.scale * second.scale * _inner_product(product_of(first, a), product_of(second, b))
        for first, second in zip(layout_of_a.modules, layout_of_b.modules, strict=True)
    )


def _inner_product(p: Products, q: Products) -> float:
    """⟨A ⊗ B1·B2, A' ⊗ B1'·B2'⟩ = ⟨A, A'⟩ · Σ (B1ᵀB1') ∘ (B2B2'ᵀ)."""
    p, q = p.times(1.0), q.times(1.0)
    return float(np.sum(p.A * q.A) * np.sum((p.B1[0].T @ q.B1[0]) * (p.B2[0] @ q.B2[0].T)))


def _check(method: str, density: float, scaling: float, seed: int) -> None:
    if method not in METHODS:
        raise ConfigError(f"method {method!r} does not exist: use one of {', '.join(METHODS)}")
    if not 0 < density <= 1:
        raise ConfigError(f"density is {density}: it must be greater than 0 and at most 1")
    if not 0 < scaling < float("inf"):
        raise ConfigError(f"scaling is {scaling}: it must be greater than 0 and finite")
    if seed < 0:
        raise ConfigError(f"seed is {seed}: it must be at least 0")


def _check_target(layout: AdapterLayout, target: AdapterLayout) -> None:
    def fixed(module: ModuleLayout) -> tuple[object, ...]:
        return module.path, module.kind, *product_shapes(module)[:2]

    ours, theirs = ([fixed(module) for module in each.modules] for each in (layout, target))
    if ours != theirs:
        different = next((m for m, other in zip(ours, theirs, strict=False) if m != other), ours[-1])
        raise AdapterError(
            f"module {different[0]!r} is not the same in both layouts: they may differ in ranks and scales, "
            "but not in paths, kinds or the size of A"
        )
    if layout.base != target.base or layout.dense != target.dense:
        raise AdapterError(
            "the layouts belong to other bases, or have other tensors that are trained in full"
        )
