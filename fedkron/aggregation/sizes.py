"""One adapter in several sizes: a small device holds the best approximation of a large one's.

A product on a coarse grid d_A2 × d_A1 is a sum of products on a finer one (rows of B1 move into A), and a sum
in Tucker form on a fine grid is one on any coarser grid: sizes with different d_A2 meet on their common
refinement, in one rearrangement, and no ΔW is formed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from fedkron.aggregation.product_mean import reference_of, tucker_sum
from fedkron.aggregation.products import Array, Products, factors_of, product_of, product_shapes
from fedkron.aggregation.projection import Reference, project
from fedkron.aggregation.tucker import Tucker
from fedkron.errors import AdapterError, ConfigError
from fedkron.layout import AdapterLayout, ModuleLayout, State, TensorLayout, flatten

_SIZED_KINDS = ("kron_lora", "lora")


@dataclass(frozen=True, slots=True)
class Size:
    """Rank of a client's adapter and rows of its A; `None`: as in the global adapter, and for plain LoRA."""

    rank: int
    d_a2: int | None = None


def size_name(size: Size) -> str:
    """`rank 4`, or `rank 4, d_A2 8`."""
    return f"rank {size.rank}" + (f", d_A2 {size.d_a2}" if size.d_a2 is not None else "")


def sized(layout: AdapterLayout, size: Size) -> AdapterLayout:
    """The layout of a client's adapter of this size: same layers, d_A1 and dense tensors.

    The scale is that of `layout` on purpose, whatever the rank: a smaller adapter then is some of the
    directions of the larger one, which learn as fast as they do there.

    Raises `ConfigError` for a rank that is not from 1 to the layout's, and for a d_A2 that does not divide
    d_out of a layer or that no layer has, `AdapterError` for a module that is neither kron_lora nor lora.
    """
    if size.d_a2 is not None and not any(module.kind == "kron_lora" for module in layout.modules):
        raise ConfigError(f"d_A2 is {size.d_a2}, but no layer is kron_lora: leave d_A2 out")
    return replace(layout, modules=tuple(_sized(module, size) for module in layout.modules))


def _sized(module: ModuleLayout, size: Size) -> ModuleLayout:
    _require_sizes(module)
    (d_A2, d_A1), (d_B2, d_B1), rank = product_shapes(module)
    if not 1 <= size.rank <= rank:
        raise ConfigError(f"rank is {size.rank}: for module {module.path!r} it may be 1 to {rank}")
    if module.kind == "lora":
        shapes = {"lora_A": (size.rank, d_B1), "lora_B": (d_B2, size.rank)}
    else:
        rows = d_A2 if size.d_a2 is None else size.d_a2
        d_out = d_A2 * d_B2
        if rows < 1 or d_out % rows:
            divisors = ", ".join(str(n) for n in range(1, min(d_out, 64) + 1) if d_out % n == 0)
            raise ConfigError(
                f"d_A2 is {rows}, which does not divide d_out = {d_out} of module {module.path!r}: "
                f"it may be {divisors}"
            )
        shapes = {"A": (rows, d_A1), "B1": (d_out // rows, size.rank), "B2": (size.rank, d_B1)}
    return replace(module, factors=tuple(TensorLayout(f.name, shapes[f.name]) for f in module.factors))


def resized(
    adapter: State, layout: AdapterLayout, target: AdapterLayout, reference: State | None = None
) -> State:
    """An adapter of `layout` in the shapes of `target`: the best approximation of its ΔW, layer by layer.

    Best in Frobenius norm; exact where it fits. `target` is a `sized` layout of the same layers, larger or
    smaller. Of all factors with that product, those near to `reference`, an adapter of the target layout: as
    a rule what this size held before. By default they are near to the adapter's own: rows of A repeated or
    left out, the first rows of B2, completed by orthogonal ones of the same norm. So an adapter that has not
    learnt anything (B1 = 0) stays one that can. Dense tensors are copied. float32 out, float64 inside.

    Raises `AdapterError` for an adapter or a reference that does not fit its layout, and for layouts of
    different layers.
    """
    require_same_layers(layout, target)
    flatten(adapter, layout)
    if reference is not None:
        flatten(reference, target)
    state = {tensor.name: adapter[tensor.name].copy() for tensor in layout.dense}
    for module, wanted in zip(layout.modules, target.modules, strict=True):
        product = product_of(module, adapter)
        near = _derived(product, wanted)
        if reference is not None:
            near = unless_zero(reference_of(product_of(wanted, reference)), near)
        rows = common_rows([module, wanted])
        total = tucker_sum(wanted, None, rows)
        total.add(refined(product, rows), 1.0)
        found = project(coarsened(total.total(), len(near.A)), near)
        state |= factors_of(wanted, found.A, found.B1, found.B2)
    return {tensor.name: state[tensor.name] for tensor in target.tensors}


def require_same_layers(layout: AdapterLayout, other: AdapterLayout) -> None:
    """Raise `AdapterError` unless these are two sizes of one adapter, of kinds that have sizes."""
    if layout.dense != other.dense or len(layout.modules) != len(other.modules):
        raise AdapterError("these are not two sizes of one adapter: they differ in layers or dense tensors")
    for module, twin in zip(layout.modules, other.modules, strict=True):
        _require_sizes(module)
        same = replace(twin, factors=module.factors) == module
        if not same or product_shapes(module)[0][1] != product_shapes(twin)[0][1]:
            raise AdapterError(
                f"these are not two sizes of one adapter: {module.path!r} ({module.kind}, scale "
                f"{module.scale:g}) and {twin.path!r} ({twin.kind}, scale {twin.scale:g})"
            )


def _require_sizes(module: ModuleLayout) -> None:
    if module.kind not in _SIZED_KINDS:
        raise AdapterError(
            f"module {module.path!r} has kind {module.kind!r}: only {' and '.join(_SIZED_KINDS)} have sizes"
        )


def common_rows(modules: Iterable[ModuleLayout]) -> int:
    """d_A2 of the coarsest grid that is a refinement of all of theirs."""
    return math.lcm(*(product_shapes(module)[0][0] for module in modules))


def refined(products: Products, rows: int) -> Products:
    """The same sum on a grid of d_A2 = `rows`, a multiple of theirs: m times as many terms, B1 cut in m.

    Block (i, ρ; j) of the fine grid is A_ij · (rows ρ of B1) · B2.
    """
    count, d_A2, d_A1 = products.A.shape
    m = rows // d_A2
    A = np.zeros((count, m, d_A2, m, d_A1), products.A.dtype)
    A[:, range(m), :, range(m)] = products.A
    B1 = products.B1.reshape(count * m, -1, products.rank)
    return Products(A.reshape(count * m, rows, d_A1), B1, np.repeat(products.B2, m, axis=0))


def coarsened(tucker: Tucker, rows: int) -> Tucker:
    """The same sum on a grid of d_A2 = `rows`, a divisor of its own.

    With m fine rows in a coarse one, Q1 becomes I_m ⊗ Q1, which is orthonormal too, and the core takes in the
    basis of A: core'[(i, j), (ρ, x), y] = Σ_k left[k, (i, ρ), j] · core[k, x, y].
    """
    (d_A2, d_A1), (q_a, q_1, q_2) = tucker.grid, tucker.core.shape
    m = d_A2 // rows
    if m == 1:
        return tucker
    left = tucker.left.reshape(q_a, rows, m, d_A1).transpose(1, 3, 2, 0)
    core = np.tensordot(left, tucker.core, axes=1).reshape(rows * d_A1, m * q_1, q_2)
    identity = np.eye(rows * d_A1).reshape(-1, rows, d_A1)
    return Tucker(identity, core, np.asarray(np.kron(np.eye(m), tucker.Q1), np.float64), tucker.Q2)


def _derived(product: Products, wanted: ModuleLayout) -> Reference:
    """Factors of the wanted shapes made of one product's own; B1 is zero."""
    grid, (d_B2, _), rank = product_shapes(wanted)
    A, B2 = product.A[0].astype(np.float64), product.B2[0].astype(np.float64)
    # Sizes of all of A and B2: the rows that are taken over may happen to be zero.
    size_A = float(np.linalg.norm(A)) * math.sqrt(grid[0] / len(A))
    size_B2 = float(np.linalg.norm(B2)) * math.sqrt(rank / len(B2))
    return Reference(np.resize(A, grid), np.zeros((d_B2, rank)), _rows(B2, rank), size_A, size_B2)


def unless_zero(reference: Reference, otherwise: Reference) -> Reference:
    """A reference, unless its A or B2 is zero: no product could be made with factors of that size."""
    return reference if reference.size_A and reference.size_B2 else otherwise


def _rows(B2: Array, rank: int) -> Array:
    """The first rows of B2, or all with more that are orthogonal to them, of their mean square norm."""
    held, width = B2.shape
    if rank <= held:
        return B2[:rank]
    basis, _ = np.linalg.qr(np.hstack([B2.T, np.eye(width)]))
    added = np.zeros((rank - held, width))
    free = basis[:, held:rank].T  # fewer where the rank is above the width
    added[: len(free)] = free * (np.linalg.norm(B2) / math.sqrt(held))
    return np.vstack([B2, added])
