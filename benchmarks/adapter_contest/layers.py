"""The layers that `benchmarks/adapters.py` compares: ours, PEFT's and LyCORIS's, on the same frozen weight.

LoKr is ΔW = (α/r) · w1 ⊗ (w2_a·w2_b), with w1 of the same width and height: 2 × 2 here, as wide as our A.
PEFT forms ΔW in each forward pass. So does LyCORIS by default; it takes part with `bypass_mode=True`, its
fastest way, which does not. Neither has a dropout on x.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from importlib.util import find_spec

import torch
from peft import LoKrConfig, LoraConfig, get_peft_model
from torch import Tensor, nn

from fedkron.adapters import AdapterSpec, adapter_kind

RANK = 8
ALPHA = 32.0
WIDTH = 2
"""d_A1, and the size of LoKr's w1."""

BARE = "bare Linear"
KRON_LORA = "Kron-LoRA"
PEFT_LORA = "PEFT LoRA"
PEFT_LORA_LOW = "PEFT LoRA, bf16 factors"
PEFT_LOKR = "PEFT LoKr"
LYCORIS_LOKR = "LyCORIS LoKr"

Wrap = Callable[[nn.Linear, int, float], nn.Module]
"""From a frozen layer, d_A2 and a dropout probability to the adapted layer."""


def lycoris_installed() -> bool:
    """Whether the package `lycoris-lora` can be imported."""
    return find_spec("lycoris") is not None


def contestants(dtype: torch.dtype) -> dict[str, Wrap]:
    """All that are compared for a base of this dtype, by name, the bare layer first.

    All keep their factors in float32. PEFT computes its correction in that dtype too, unless it is told
    to round the factors to the dtype of the base: for bf16 it takes part both ways.
    """
    wraps: dict[str, Wrap] = {
        BARE: lambda linear, _d_a2, _dropout: linear,
        KRON_LORA: partial(_fedkron, "kron_lora"),
        "our LoRA": partial(_fedkron, "lora"),
        PEFT_LORA: _peft_lora,
        PEFT_LOKR: _peft_lokr,
    }
    if dtype is not torch.float32:
        wraps[PEFT_LORA_LOW] = partial(_peft_lora, autocast_adapter_dtype=False)
    if lycoris_installed():
        wraps[LYCORIS_LOKR] = _lycoris_lokr
    return wraps


def adapted(wrap: Wrap, linear: nn.Linear, d_a2: int, dropout: float) -> nn.Module:
    """`linear` wrapped by a contestant in training mode, with random factors instead of ΔW = 0.

    The weight is frozen and shared with `linear`, the module itself is not.
    """
    linear.requires_grad_(False)
    own = nn.Linear(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
    own.weight, own.bias = linear.weight, linear.bias
    layer = wrap(own, d_a2, dropout).to(linear.weight.device).train()
    for factor in layer.parameters():
        if factor.requires_grad:
            nn.init.normal_(factor, std=0.02)
    return layer


def saved_storages(forward: Callable[[], Tensor]) -> dict[int, int]:
    """Bytes of each distinct storage that autograd keeps for the backward pass, by its address."""
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        # Held until the end, so that no address is used twice.
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return {address: storage.nbytes() for address, storage in storages.items()}


def bytes_without(storages: dict[int, int], tensors: Iterable[Tensor]) -> int:
    """Sum of the sizes of all storages but those of `tensors`."""
    known = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    return sum(size for address, size in storages.items() if address not in known)


def _fedkron(kind: str, linear: nn.Linear, d_a2: int, dropout: float) -> nn.Module:
    spec = AdapterSpec(kind, rank=RANK, alpha=ALPHA, dropout=dropout, d_a1=WIDTH, d_a2=d_a2)
    return adapter_kind(kind).wrap(linear, spec)


def _peft_lora(
    linear: nn.Linear, _d_a2: int, dropout: float, *, autocast_adapter_dtype: bool = True
) -> nn.Module:
    config = LoraConfig(r=RANK, lora_alpha=int(ALPHA), lora_dropout=dropout, target_modules=["0"])
    return _peft_layer(linear, config, autocast_adapter_dtype)


def _peft_lokr(linear: nn.Linear, _d_a2: int, _dropout: float) -> nn.Module:
    config = LoKrConfig(r=RANK, alpha=int(ALPHA), decompose_factor=WIDTH, target_modules=["0"])
    return _peft_layer(linear, config, autocast_adapter_dtype=True)


def _peft_layer(
    linear: nn.Linear, config: LoraConfig | LoKrConfig, autocast_adapter_dtype: bool
) -> nn.Module:
    # The layer that PEFT puts in place of `linear`, without the model around it.
    model = get_peft_model(nn.Sequential(linear), config, autocast_adapter_dtype=autocast_adapter_dtype)
    return model.get_base_model()[0]


def _lycoris_lokr(linear: nn.Linear, _d_a2: int, _dropout: float) -> nn.Module:
    from lycoris.modules.lokr import LokrModule

    return LokrModule("0", linear, lora_dim=RANK, alpha=ALPHA, factor=WIDTH, bypass_mode=True)
