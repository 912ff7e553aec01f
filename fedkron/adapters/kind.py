"""From the name of an adapter kind to its layer class."""

from __future__ import annotations

from importlib import import_module

from fedkron.adapters.adapted_linear import AdaptedLinear
from fedkron.errors import ConfigError
from fedkron.kinds import ADAPTER_KINDS


def adapter_kind(name: str) -> type[AdaptedLinear]:
    """The layer class of an adapter kind; `ConfigError` for an unknown one lists those that exist."""
    if name not in ADAPTER_KINDS:
        raise ConfigError(f"adapter kind {name!r} does not exist: use one of {', '.join(ADAPTER_KINDS)}")
    module, _, layer_class = ADAPTER_KINDS[name].partition(":")
    found: type[AdaptedLinear] = getattr(import_module(module), layer_class)
    return found
