"""From one adapter kind to another: exactly to plain LoRA, as nearly as possible to Kron-LoRA.

ΔW is not formed. Every kind is a sum of Kronecker products (`fedkron.adapters.kron_terms`), hence a pair
ΔW = L·R of low rank. Cut into d_A2 × d_A1 blocks ΔW_ij = L_i·R_j, its nearest A ⊗ (B1·B2) is found as in
`fedkron.aggregation.projection`, in a core tensor that QR of the L_i and of the R_j leaves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fedkron.adapters import AdapterSpec, KronTerms, adapter_kind
from fedkron.aggregation.projection import alternate
from fedkron.errors import AdapterError
from fedkron.exchange.files import EXACT_FORM_OF, AdapterFile
from fedkron.layout import AdapterLayout, ModuleLayout, State, TensorLayout

Array = npt.NDArray[np.float64]

# float32 factors do not tell smaller singular values from zero.
_RANK_TOLERANCE = float(np.finfo(np.float32).eps)


@dataclass(frozen=True, slots=True)
class LayerError:
    """How far (squared Frobenius norms) a layer's new ΔW is from the one it stands for."""

    path: str
    squared_error: float
    squared_norm: float

    @property
    def relative(self) -> float:
        """‖error‖ / ‖ΔW‖; zero where ΔW is zero."""
        return math.sqrt(self.squared_error / self.squared_norm) if self.squared_norm else 0.0


def total_relative(errors: Sequence[LayerError]) -> float:
    """‖error‖ / ‖ΔW‖ over all layers together; zero where all are zero."""
    squared_norm = sum(error.squared_norm for error in errors)
    return math.sqrt(sum(error.squared_error for error in errors) / squared_norm) if squared_norm else 0.0


def lora_factors(module: ModuleLayout, state: State) -> tuple[Array, Array]:
    """One layer's ΔW as lora_B·lora_A, exactly, scale included: float64, (d_out, rank) and (rank, d_in).

    The rank is that of the layer's structure: M·r·min(d_A1, d_A2) for sums of M terms, the rank of B in
    place of r for KronA.
    """
    lora_B, lora_A = _full_rank(_terms(module, state)).lora()
    return lora_B.numpy(), lora_A.numpy()


def as_lora(adapter: AdapterFile) -> AdapterFile:
    """The same adapter with kind `lora` for every layer, exact up to one rounding to float32.

    Ranks differ between layers where they have to. Layers that are LoRA already are left as they are.
    """
    modules: list[ModuleLayout] = []
    state = _dense(adapter)
    for module in adapter.layout.modules:
        if module.kind == "lora":
            modules.append(module)
            state |= {name: adapter.state[name] for name in map(module.tensor_name, ("lora_A", "lora_B"))}
        else:
            lora_B, lora_A = lora_factors(module, adapter.state)
            _add(
                modules, state, replace(module, kind="lora", scale=1.0), {"lora_A": lora_A, "lora_B": lora_B}
            )
    exact = _converted(adapter, modules, state, {}, "lora, exactly")
    origin = adapter.info.get(EXACT_FORM_OF, adapter.layout.contract)
    return replace(exact, info=adapter.info | {EXACT_FORM_OF: origin})


def as_kron_lora(adapter: AdapterFile, spec: AdapterSpec) -> tuple[AdapterFile, tuple[LayerError, ...]]:
    """The nearest adapter (Frobenius, layer by layer) of kind `kron_lora`, and how near it is.

    `spec` gives rank, α and the size of A. The optimum where the rank of B does not bind, a local one
    otherwise. A and B2 get the norms that they have when training starts, B1 takes the rest, and rows of
    B2 that ΔW does not need are orthogonal to the others, so that training can go on from there.

    Raises `AdapterError` for an adapter without layers, and for a layer whose dimensions do not divide; the
    message names it.
    """
    if not adapter.layout.modules:
        raise AdapterError("this adapter has no layers: there is nothing to convert")
    kron_lora = adapter_kind("kron_lora")
    for module in adapter.layout.modules:
        try:
            kron_lora.factor_shapes(module.weight_shape[1], module.weight_shape[0], spec)
        except AdapterError as error:
            raise AdapterError(f"layer {module.path!r} cannot be converted: {error}") from None

    modules: list[ModuleLayout] = []
    state = _dense(adapter)
    errors: list[LayerError] = []
    for module in adapter.layout.modules:
        core, Q1, Q2 = _blocks(*lora_factors(module, adapter.state), spec)
        factors, residual = _nearest(core, Q1, Q2, spec)
        errors.append(LayerError(module.path, float(np.sum(residual**2)), float(np.sum(core**2))))
        _add(modules, state, replace(module, kind="kron_lora", scale=spec.scale), factors)
    known = {name: getattr(spec, name) for name in ("rank", "alpha", "d_a1", "d_a2")}
    how = f"kron_lora, relative error {total_relative(errors):.4f}"
    return _converted(adapter, modules, state, {"kind": "kron_lora", **known}, how), tuple(errors)


def _terms(module: ModuleLayout, state: State) -> KronTerms:
    names = [factor.name for factor in module.factors]
    factors = {name: torch.from_numpy(state[module.tensor_name(name)]).double() for name in names}
    try:
        terms = adapter_kind(module.kind).terms(factors, module.scale)
        _, d_a2, d_a1 = terms.stacked.shape
        d_out, d_in = d_a2 * terms.B1.shape[0], d_a1 * terms.B2.shape[1]
    except (KeyError, IndexError, RuntimeError) as error:
        raise AdapterError(
            f"layer {module.path!r}: its factors are not those of {module.kind}: {error}"
        ) from error
    if (d_out, d_in) != module.weight_shape:
        raise AdapterError(
            f"layer {module.path!r}: its factors make a weight of {[d_out, d_in]}, its layout says "
            f"{list(module.weight_shape)}"
        )
    return terms


def _full_rank(terms: KronTerms) -> KronTerms:
    """The same terms where the inner rank restricts B; elsewhere with B1 and B2 of the rank of B."""
    count, d_b2, d_b1 = len(terms.stacked), terms.B1.shape[0], terms.B2.shape[1]
    if terms.B2.shape[0] // count < min(d_b2, d_b1):
        return terms
    B = torch.stack(
        [B1 @ B2 for B1, B2 in zip(terms.B1.chunk(count, 1), terms.B2.chunk(count, 0), strict=True)]
    )
    U, S, Vt = torch.linalg.svd(B, full_matrices=False)
    rank = max(1, int((S / S[:, :1] > _RANK_TOLERANCE).sum(1).max()))
    US = U * S.unsqueeze(1)
    B1, B2 = US[:, :, :rank].transpose(0, 1).flatten(1), Vt[:, :rank].flatten(0, 1)
    # torch.kron cannot take the strides that the SVD gives.
    return terms._replace(B1=_row_major(B1), B2=_row_major(B2))


def _row_major(matrix: torch.Tensor) -> torch.Tensor:
    return matrix.clone(memory_format=torch.contiguous_format)


def _blocks(lora_B: Array, lora_A: Array, spec: AdapterSpec) -> tuple[Array, Array, Array]:
    """(core, Q1, Q2) with block ij of ΔW = Q1 · core[i·d_A1 + j] · Q2ᵀ; Q1, Q2 have orthonormal columns."""
    assert spec.d_a2 is not None, "as_kron_lora has checked the shapes"
    rank = lora_A.shape[0]
    L = lora_B.reshape(spec.d_a2, -1, rank)
    R = lora_A.reshape(rank, spec.d_a1, -1)
    Q1, R1 = np.linalg.qr(L.transpose(1, 0, 2).reshape(L.shape[1], -1))
    Q2, R2 = np.linalg.qr(R.transpose(2, 1, 0).reshape(R.shape[2], -1))
    tall = R1.reshape(-1, spec.d_a2, rank).transpose(1, 0, 2)
    wide = R2.reshape(-1, spec.d_a1, rank).transpose(1, 2, 0)
    core = tall[:, None] @ wide[None]
    return core.reshape(-1, *core.shape[2:]), Q1, Q2


def _nearest(core: Array, Q1: Array, Q2: Array, spec: AdapterSpec) -> tuple[dict[str, Array], Array]:
    """Factors A, B1, B2 of the product nearest to the blocks, and what is left of the core."""
    assert spec.d_a2 is not None, "as_kron_lora has checked the shapes"
    blocks, _, q2 = core.shape
    unit_A, US, Vt = np.full(blocks, 1 / math.sqrt(blocks)), np.zeros((core.shape[1], 0)), np.zeros((0, q2))
    if core.any():
        found = alternate(core, spec.rank)
        unit_A, US, Vt = found.a, found.U * found.S, found.Vt
    # Norms of kron_lora's initial A (normal, variance 1/d_A1) and of a row of its B2 (kaiming_uniform).
    size_A, size_B2 = math.sqrt(spec.d_a2), math.sqrt(1 / 3)
    B1 = np.zeros((Q1.shape[0], spec.rank))
    B1[:, : US.shape[1]] = Q1 @ US / (size_A * size_B2 * spec.scale)
    A = size_A * unit_A.reshape(spec.d_a2, spec.d_a1)
    B2 = size_B2 * _with_free_rows(Vt @ Q2.T, spec.rank)
    return {"A": A, "B1": B1, "B2": B2}, core - np.multiply.outer(unit_A, US @ Vt)


def _with_free_rows(rows: Array, rank: int) -> Array:
    """Orthonormal rows and, up to `rank`, more orthogonal to them (zero when there is no space left)."""
    kept, width = rows.shape
    basis, _ = np.linalg.qr(np.hstack([rows.T, np.eye(width, rank)]))
    free = basis[:, kept:rank].T
    return np.vstack([rows, free, np.zeros((rank - kept - len(free), width))])


def _dense(adapter: AdapterFile) -> State:
    return {tensor.name: adapter.state[tensor.name] for tensor in adapter.layout.dense}


def _add(modules: list[ModuleLayout], state: State, module: ModuleLayout, factors: dict[str, Array]) -> None:
    shapes = tuple(TensorLayout(name, tuple(factor.shape)) for name, factor in factors.items())
    modules.append(replace(module, factors=shapes))
    state |= {module.tensor_name(name): factor.astype(np.float32) for name, factor in factors.items()}


def _converted(
    adapter: AdapterFile, modules: list[ModuleLayout], state: State, spec: dict[str, Any], how: str
) -> AdapterFile:
    kinds = " and ".join(dict.fromkeys(module.kind for module in adapter.layout.modules))
    layout = AdapterLayout(adapter.layout.base, tuple(modules), adapter.layout.dense)
    lineage = (*adapter.lineage, f"converted from {kinds} to {how}")
    return replace(adapter, state=state, layout=layout, spec=spec, lineage=lineage)
