"""Put adapters on a model, take them off, or fold them into the weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TypeVar

from torch import nn

from fedkron.adapters.adapted_linear import AdaptedLinear
from fedkron.adapters.kinds import adapter_kind
from fedkron.adapters.spec import AdapterSpec, default_d_a2
from fedkron.errors import AdapterError

M = TypeVar("M", bound=nn.Module)

# These read the weights of their linear layers without calling them (the encoder layer in its fast path,
# in eval mode): a wrapper would do nothing.
_BYPASSING = (nn.MultiheadAttention, nn.TransformerEncoderLayer)


def attach(model: M, spec: AdapterSpec) -> M:
    """Wrap every targeted `nn.Linear` of `model` in place, freeze the rest, and return the model.

    Only the factors and the modules named in `spec.full` stay trainable. Works on the meta device too.
    A layer that stands at several places of the model (shared) is wrapped once and stays shared.

    Raises `AdapterError`, leaving the model untouched, when nothing matches, when an adapter is
    attached already, or when a layer's dimensions do not divide; the message names the layer.
    """
    if any(True for _ in adapted_layers(model)):
        raise AdapterError("this model has an adapter already: detach it, or merge it, first")
    spec = _with_d_a2(model, spec)
    layer_class = adapter_kind(spec.kind)
    places = _target_places(model, spec)
    if not places:
        raise AdapterError(
            f"no nn.Linear of {type(model).__name__} matches the targets {', '.join(spec.targets)}"
        )
    for path, linear in places:
        try:
            layer_class.factor_shapes(linear.in_features, linear.out_features, spec)
        except AdapterError as error:
            raise AdapterError(f"layer {path!r} cannot be wrapped: {error}") from None

    model.requires_grad_(False)
    for path in spec.full:
        model.get_submodule(path).requires_grad_(True)
    wrapped: dict[nn.Linear, AdaptedLinear] = {}
    for path, linear in places:
        if linear not in wrapped:
            wrapped[linear] = layer_class(linear, spec).train(linear.training)
        model.set_submodule(path, wrapped[linear])
    return model


def detach(model: M) -> M:
    """Remove all adapters in place: the model is the bare base again (still frozen)."""
    for path, layer in _all_places(model):
        model.set_submodule(path, layer.base)
    return model


def merge(model: M) -> M:
    """Fold every ΔW into its layer's weight in place and remove the adapters.

    The sum is taken in float32 (float64 for a float64 weight) and rounded to the weight's dtype. The
    weight becomes a tensor of its own: a tied embedding keeps its old values.
    """
    merged: set[AdaptedLinear] = set()
    for path, layer in _all_places(model):
        if layer not in merged:
            weight = layer.base.weight
            total = weight.detach() + layer.delta().detach()
            layer.base.weight = nn.Parameter(total.to(weight.dtype), requires_grad=False)
            merged.add(layer)
        model.set_submodule(path, layer.base)
    return model


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, AdaptedLinear]]:
    """All adapted layers with their paths in model order; a shared layer appears once."""
    for path, module in model.named_modules():
        if isinstance(module, AdaptedLinear):
            yield path, module


def _all_places(model: nn.Module) -> list[tuple[str, AdaptedLinear]]:
    return [
        (path, module)
        for path, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, AdaptedLinear)
    ]


def _target_places(model: nn.Module, spec: AdapterSpec) -> list[tuple[str, nn.Linear]]:
    modules = dict(model.named_modules(remove_duplicate=False))
    if missing := [path for path in spec.full if path not in modules]:
        raise AdapterError(f"module {missing[0]!r}, to be trained in full, is not in {type(model).__name__}")

    def is_target(path: str) -> bool:
        inside_full = any(path == full or path.startswith(full + ".") for full in spec.full)
        bypassed = isinstance(modules.get(path.rpartition(".")[0]), _BYPASSING)
        matches = any(fnmatchcase(path, pattern) for pattern in spec.targets)
        # The model itself (path "") cannot be replaced in place.
        return path != "" and matches and not inside_full and not bypassed

    return [
        (path, module)
        for path, module in modules.items()
        if isinstance(module, nn.Linear) and is_target(path)
    ]


def _with_d_a2(model: nn.Module, spec: AdapterSpec) -> AdapterSpec:
    hidden_size = getattr(getattr(model, "config", None), "hidden_size", None)
    if spec.d_a2 is not None or hidden_size is None:
        return spec
    return replace(spec, d_a2=default_d_a2(hidden_size))
