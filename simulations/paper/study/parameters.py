"""How many parameters an adapter has on a base."""

from __future__ import annotations

from collections.abc import Iterable

from simulations.paper.study.adapters import Adapter


def adapter_parameters(base: str, adapters: Iterable[Adapter]) -> dict[Adapter, int]:
    """Parameters that travel, by adapter, from the base's configuration alone (without the task heads)."""
    from fedkron.adapters import adapter_layout, attach
    from fedkron.base import empty_backbone

    return {
        adapter: adapter_layout(attach(empty_backbone(base), adapter.settings().spec()), base="").size
        for adapter in adapters
    }
