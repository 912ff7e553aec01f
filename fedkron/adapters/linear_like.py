"""What can be wrapped: `nn.Linear`, and layers that only act like one.

Quantized linears (bitsandbytes, GPTQ, AWQ, HQQ, torch.ao) say their size in `in_features` and
`out_features`; GPT-2's `Conv1D` in `nx` and `nf`, with its weight transposed. None of their libraries is
imported here.
"""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor, nn

from fedkron.errors import AdapterError


def features(module: nn.Module) -> tuple[int, int] | None:
    """(d_in, d_out) of a layer that maps (…, d_in) to (…, d_out), or None for any other module."""
    names = ("nx", "nf") if type(module).__name__ == "Conv1D" else ("in_features", "out_features")
    d_in, d_out = (getattr(module, name, None) for name in names)
    lazy = isinstance(module, nn.modules.lazy.LazyModuleMixin)
    return (d_in, d_out) if isinstance(d_in, int) and isinstance(d_out, int) and not lazy else None


def is_plain_linear(module: nn.Module) -> bool:
    """Whether calling `module` is F.linear on its weight and bias, and nothing else.

    Not so for a subclass, nor where somebody has hooked in (offloading, tracing, quantization).
    """
    return (
        type(module) is nn.Linear
        and not (module._forward_hooks or module._forward_pre_hooks)
        and not (module._backward_hooks or module._backward_pre_hooks)
        and "forward" not in module.__dict__
    )


def device_of(module: nn.Module) -> torch.device:
    """Where the layer's numbers are; the CPU for a layer without any."""
    first = next(chain(module.parameters(), module.buffers()), None)
    return torch.device("cpu") if first is None else first.device


def fold(module: nn.Module, delta: Tensor) -> nn.Parameter:
    """weight + delta as a new parameter of the weight's dtype; `delta` is (d_out, d_in).

    The sum is taken in float32 (float64 for a float64 weight) and rounded once. Raises `AdapterError` for
    a layer that does not keep its weight as plain numbers of that shape.
    """
    weight = getattr(module, "weight", None)
    change = delta.T if type(module).__name__ == "Conv1D" else delta
    if not isinstance(weight, Tensor):
        raise _quantized(module, "packed")
    if not weight.is_floating_point() or weight.shape != change.shape:
        raise _quantized(module, f"{str(weight.dtype).removeprefix('torch.')} {list(weight.shape)}")
    return nn.Parameter((weight.detach() + change.detach()).to(weight.dtype), requires_grad=False)


def _quantized(module: nn.Module, weight: str) -> AdapterError:
    return AdapterError(
        f"its {type(module).__name__} keeps a quantized weight ({weight}): merging would lose accuracy. "
        "Use the adapter unmerged, or load the base in bf16, fp16 or fp32"
    )
