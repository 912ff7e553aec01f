"""What is trained: Kron-LoRA and LoRA layers, and how they get on and off a model."""

from fedkron.adapters.adapted_linear import AdaptedLinear
from fedkron.adapters.attach import adapted_layers, attach, detach, merge
from fedkron.adapters.kinds import KINDS, adapter_kind
from fedkron.adapters.kron_lora import KronLoRALinear
from fedkron.adapters.lora import LoRALinear
from fedkron.adapters.spec import AdapterSpec, default_d_a2
from fedkron.adapters.state import adapter_layout, adapter_state, count_parameters, load_adapter_state

__all__ = [
    "KINDS",
    "AdaptedLinear",
    "AdapterSpec",
    "KronLoRALinear",
    "LoRALinear",
    "adapted_layers",
    "adapter_kind",
    "adapter_layout",
    "adapter_state",
    "attach",
    "count_parameters",
    "default_d_a2",
    "detach",
    "load_adapter_state",
    "merge",
]
