"""What is trained: Kron-LoRA and its relatives, and how they get on and off a model."""

from fedkron.adapters.adapted_linear import AdaptedLinear
from fedkron.adapters.attach import adapted_layers, attach, attach_layout, detach
from fedkron.adapters.bank import AdapterBank
from fedkron.adapters.freeze import only_trained
from fedkron.adapters.kind import adapter_kind
from fedkron.adapters.kron_terms import KronTerms
from fedkron.adapters.merge import Merged, merge
from fedkron.adapters.spec import AdapterSpec, default_d_a2
from fedkron.adapters.state import adapter_layout, adapter_state, count_parameters, load_adapter_state
from fedkron.adapters.terms import folded
from fedkron.kinds import ADAPTER_KINDS

__all__ = [
    "ADAPTER_KINDS",
    "AdaptedLinear",
    "AdapterBank",
    "AdapterSpec",
    "KronTerms",
    "Merged",
    "adapted_layers",
    "adapter_kind",
    "adapter_layout",
    "adapter_state",
    "attach",
    "attach_layout",
    "count_parameters",
    "default_d_a2",
    "detach",
    "folded",
    "load_adapter_state",
    "merge",
    "only_trained",
]
