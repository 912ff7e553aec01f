"""Between a model's adapter and plain numpy tensors: what is saved, sent and received."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from fedkron.adapters.attach import adapted_layers
from fedkron.errors import AdapterError
from fedkron.layout import AdapterLayout, ModuleLayout, State, TensorLayout, flatten, unflatten


def adapter_layout(model: nn.Module, base: str) -> AdapterLayout:
    """Layout of the adapter on `model`: its factors, then whatever else is trained (modules in `full`).

    `base` is the fingerprint of the base (`fedkron.base.fingerprint`). Works on the meta device.
    Raises `AdapterError` when no adapter is attached.
    """
    modules = tuple(
        ModuleLayout(
            path,
            layer.kind,
            layer.scale,
            (layer.out_features, layer.in_features),
            tuple(TensorLayout(name, tuple(factor.shape)) for name, factor in layer.factors().items()),
        )
        for path, layer in adapted_layers(model)
    )
    if not modules:
        raise AdapterError("no adapter is attached to this model: call attach(model, spec) first")
    factor_names = {module.tensor_name(f.name) for module in modules for f in module.factors}
    dense = tuple(
        TensorLayout(name, tuple(parameter.shape))
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and name not in factor_names
    )
    return AdapterLayout(base, modules, dense)


def adapter_state(model: nn.Module) -> State:
    """Copies of all trained tensors by name, float32 on the CPU, in wire order."""
    return {
        tensor.name: model.get_parameter(tensor.name).detach().float().cpu().numpy().copy()
        for tensor in adapter_layout(model, base="").tensors
    }


def load_adapter_state(model: nn.Module, state: State) -> None:
    """Set all trained tensors of `model` from `state`, in place.

    Raises `AdapterError`, leaving the model untouched, when a tensor is missing, unknown, of another
    shape, or not finite.
    """
    layout = adapter_layout(model, base="")
    tensors = unflatten(flatten(state, layout), layout)
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise AdapterError(f"tensor {name!r} holds values that are not finite")
    with torch.no_grad():
        for name, tensor in tensors.items():
            model.get_parameter(name).copy_(torch.from_numpy(tensor))


def count_parameters(model: nn.Module) -> int:
    """Number of trained parameters: factors and modules trained in full. Works on the meta device."""
    return adapter_layout(model, base="").size
