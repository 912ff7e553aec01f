"""Put adapters on a model, and take them off."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TypeVar

import torch
from torch import nn

from fedkron.adapters.adapted_linear import AdaptedLinear
from fedkron.adapters.kind import adapter_kind
from fedkron.adapters.linear_like import features
from fedkron.adapters.spec import AdapterSpec, default_d_a2
from fedkron.errors import AdapterError
from fedkron.layout import AdapterLayout, ModuleLayout

M = TypeVar("M", bound=nn.Module)
Places = Mapping[str, nn.Module]
"""Modules by path; a shared one has several paths."""

# These read the weights of their linear layers without calling them (the encoder layer in its fast path,
# in eval mode): a wrapper would do nothing.
_BYPASSING = (nn.MultiheadAttention, nn.TransformerEncoderLayer)


def attach(model: M, spec: AdapterSpec) -> M:
    """Wrap every targeted linear layer of `model` in place, freeze the rest, and return the model.

    Linear layers are `nn.Linear` and whatever acts like one: quantized linears, GPT-2's `Conv1D`. Only the
    factors and the modules named in `spec.full` stay trainable. Works on the meta device too. A layer
    that stands at several places of the model (shared) is wrapped once and stays shared.

    Raises `AdapterError`, leaving the model untouched, when nothing matches, when an adapter of ours or of
    another library is attached already, or when a layer's dimensions do not divide; the message names the
    layer and the divisors that would work.
    """
    if any(True for _ in adapted_layers(model)):
        raise AdapterError("this model has an adapter already: detach it, or merge it, first")
    spec = _with_d_a2(model, spec)
    layer_class = adapter_kind(spec.kind)
    places = _target_places(model, spec)
    if not places:
        raise AdapterError(
            f"no linear layer of {type(model).__name__} matches the targets {', '.join(spec.targets)}"
        )
    for path, linear in places.items():
        try:
            layer_class.factor_shapes(*_features(linear), spec)
        except AdapterError as error:
            raise AdapterError(
                f"layer {path!r} cannot be wrapped: {error}; or leave it out, with '!{path}' as a target"
            ) from None

    _replace(model, places, lambda _, linear: layer_class.wrap(linear, spec))
    for path in spec.full:
        model.get_submodule(path).requires_grad_(True)
    return model


def attach_layout(model: M, layout: AdapterLayout) -> M:
    """Wrap the layers that `layout` names, with factors of its shapes (still untrained), in place.

    For an adapter that exists already: `load_adapter_state` fills it. Raises `AdapterError`, leaving the
    model untouched, when a layer is missing or of another size, or when its factors are not those of its
    kind; `ConfigError` for an unknown kind.
    """
    if any(True for _ in adapted_layers(model)):
        raise AdapterError("this model has an adapter already: detach it, or merge it, first")
    modules = dict(model.named_modules(remove_duplicate=False))
    wanted: dict[nn.Module, ModuleLayout] = {}
    for module in layout.modules:
        _check_fits(module, modules.get(module.path))
        wanted[modules[module.path]] = module

    def wrap(_: str, linear: nn.Module) -> AdaptedLinear:
        module = wanted[linear]
        shapes = {factor.name: factor.shape for factor in module.factors}
        return adapter_kind(module.kind)(linear, shapes, module.scale)

    return _replace(model, {path: linear for path, linear in modules.items() if linear in wanted}, wrap)


def detach(model: M) -> M:
    """Remove all adapters in place: the model is the bare base again (still frozen)."""
    for path, layer in adapted_places(model).items():
        model.set_submodule(path, layer.base)
    return model


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, AdaptedLinear]]:
    """All adapted layers with their paths in model order; a shared layer appears once."""
    for path, module in model.named_modules():
        if isinstance(module, AdaptedLinear):
            yield path, module


def adapted_places(model: nn.Module) -> dict[str, AdaptedLinear]:
    """All paths of adapted layers; a shared layer has several."""
    return {
        path: module
        for path, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, AdaptedLinear)
    }


def _replace(model: M, places: Places, wrap: Callable[[str, nn.Module], AdaptedLinear]) -> M:
    model.requires_grad_(False)
    wrapped: dict[nn.Module, AdaptedLinear] = {}
    for path, linear in places.items():
        if linear not in wrapped:
            wrapped[linear] = wrap(path, linear).train(linear.training)
        model.set_submodule(path, wrapped[linear])
    return model


def _target_places(model: nn.Module, spec: AdapterSpec) -> dict[str, nn.Module]:
    modules = dict(model.named_modules(remove_duplicate=False))
    if missing := [path for path in spec.full if path not in modules]:
        raise AdapterError(f"module {missing[0]!r}, to be trained in full, is not in {type(model).__name__}")

    def is_target(path: str) -> bool:
        inside_full = any(path == full or path.startswith(full + ".") for full in spec.full)
        bypassed = isinstance(modules.get(path.rpartition(".")[0]), _BYPASSING)
        # The model itself (path "") cannot be replaced in place.
        return path != "" and spec.matches(path) and not inside_full and not bypassed

    places = {path: module for path, module in modules.items() if features(module) and is_target(path)}
    for path in places:
        parts = path.split(".")
        ancestors = (".".join(parts[:n]) for n in range(1, len(parts)))
        outer = next((ancestor for ancestor in ancestors if features(modules[ancestor])), None)
        if outer is not None:
            found = type(modules[outer])
            raise AdapterError(
                f"layer {path!r} is inside {outer!r}, linear itself ({found.__module__}.{found.__name__}): "
                "merge or remove the adapter that another library put there, or leave this layer out, with "
                f"'!{path}' as a target"
            )
    return places


def _features(linear: nn.Module) -> tuple[int, int]:
    found = features(linear)
    assert found is not None, "only linear layers are targets"
    return found


def _check_fits(module: ModuleLayout, linear: nn.Module | None) -> None:
    found = None if linear is None else features(linear)
    if linear is None or found is None:
        raise AdapterError(
            f"the adapter has a layer {module.path!r}, which is not a linear layer of this model"
        )
    d_in, d_out = found
    factors = {f.name: torch.empty(f.shape, device="meta") for f in module.factors}
    layer_class = adapter_kind(module.kind)
    try:
        if tuple(factors) != layer_class.factor_names:
            raise AdapterError(f"a {module.kind} adapter has factors {', '.join(layer_class.factor_names)}")
        shape = tuple(layer_class.terms(factors, module.scale).dense().shape)
    except (AdapterError, RuntimeError, ValueError, IndexError) as error:
        shapes = {f.name: list(f.shape) for f in module.factors}
        raise AdapterError(
            f"layer {module.path!r}: factors {shapes} are not those of {module.kind}: {error}"
        ) from error
    if shape != (d_out, d_in) or module.weight_shape != (d_out, d_in):
        raise AdapterError(
            f"layer {module.path!r} has a weight of {[d_out, d_in]} here, the adapter is for {list(shape)}"
        )


def _with_d_a2(model: nn.Module, spec: AdapterSpec) -> AdapterSpec:
    hidden_size = getattr(getattr(model, "config", None), "hidden_size", None)
    if spec.d_a2 is not None or hidden_size is None:
        return spec
    return replace(spec, d_a2=default_d_a2(hidden_size))
