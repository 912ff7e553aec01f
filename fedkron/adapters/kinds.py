"""The adapter kinds by name. A new kind is one file and one line here."""

from __future__ import annotations

from fedkron.adapters.adapted_linear import AdaptedLinear
from fedkron.adapters.kron_lora import KronLoRALinear
from fedkron.adapters.lora import LoRALinear
from fedkron.errors import ConfigError

KINDS: dict[str, type[AdaptedLinear]] = {cls.kind: cls for cls in (KronLoRALinear, LoRALinear)}


def adapter_kind(name: str) -> type[AdaptedLinear]:
    """The layer class of an adapter kind; `ConfigError` for an unknown one lists those that exist."""
    if name not in KINDS:
        raise ConfigError(f"adapter kind {name!r} does not exist: use one of {', '.join(KINDS)}")
    return KINDS[name]
