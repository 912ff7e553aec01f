"""Kronecker terms that belong to the base: what an aggregation could not put into one adapter.

A set of terms (`fedkron.aggregation.Aggregate.terms`) has for a layer at `path` three float32 tensors:
`path.terms.A` (T, d_A2, d_A1), `path.terms.B1` (T, d_B2, r) and `path.terms.B2` (T, r, d_B1). They stand for
Σₜ Aₜ ⊗ (B1ₜ·B2ₜ), to be added to the layer's frozen weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from fedkron.adapters.adapted_linear import AdaptedLinear
from fedkron.adapters.kron_terms import KronTerms
from fedkron.adapters.linear_like import features, fold
from fedkron.errors import AdapterError
from fedkron.layout import State

SUFFIX = ".terms.A"


@contextmanager
def folded(model: nn.Module, terms: Sequence[State]) -> Iterator[None]:
    """Add sets of terms to the frozen weights of `model` until the context ends, then put those back.

    `model` may have an adapter attached. Raises `AdapterError`, leaving the model untouched, for a layer that
    is missing, of another size, or whose weight is quantized.
    """
    layers = {path: _linear(model, path) for path in _paths(terms)}
    weights = {path: fold(layer, _delta(layer, path, terms)) for path, layer in layers.items()}
    originals = {path: layer.weight for path, layer in layers.items()}
    for path, layer in layers.items():
        layer.weight = weights[path]
    try:
        yield
    finally:
        for path, layer in layers.items():
            layer.weight = originals[path]


def _paths(terms: Sequence[State]) -> list[str]:
    return list(dict.fromkeys(n.removesuffix(SUFFIX) for s in terms for n in s if n.endswith(SUFFIX)))


def _linear(model: nn.Module, path: str) -> nn.Module:
    try:
        module = model.get_submodule(path)
    except AttributeError:
        raise AdapterError(f"there are terms for a layer {path!r}, which this model does not have") from None
    linear = module.base if isinstance(module, AdaptedLinear) else module
    if features(linear) is None:
        raise AdapterError(f"there are terms for {path!r}, which is {type(linear).__name__} and not linear")
    return linear


def _delta(layer: nn.Module, path: str, terms: Sequence[State]) -> Tensor:
    d_in, d_out = features(layer) or (0, 0)
    weight = cast(Tensor, layer.weight)
    total = torch.zeros(d_out, d_in, device=weight.device)
    for state in terms:
        if path + SUFFIX not in state:
            continue
        A, B1, B2 = (
            torch.from_numpy(state[f"{path}.terms.{name}"]).to(weight.device) for name in ("A", "B1", "B2")
        )
        delta = KronTerms(A, B1.transpose(0, 1).flatten(1), B2.flatten(0, 1), 1.0).dense()
        if delta.shape != total.shape:
            raise AdapterError(
                f"the terms of layer {path!r} are for a weight of {list(delta.shape)}, "
                f"here it is {[d_out, d_in]}"
            )
        total += delta
    return total
