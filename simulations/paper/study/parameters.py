"""How large an adapter is on a base, from the base's configuration alone."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from fedkron.compression import codec, encode_vector
from fedkron.layout import AdapterLayout
from simulations.paper.study.adapters import Adapter


def layouts(base: str, adapters: Iterable[Adapter]) -> dict[Adapter, AdapterLayout]:
    """What travels of each adapter (task heads do not)."""
    from fedkron.adapters import adapter_layout, attach
    from fedkron.base import empty_backbone

    return {
        adapter: adapter_layout(attach(empty_backbone(base), adapter.settings().spec()), base="")
        for adapter in adapters
    }


def payload_bytes(layout: AdapterLayout, name: str) -> int:
    """Bytes of a change in a codec: of a normally distributed one, which no real one exceeds by much."""
    update = np.random.default_rng(0).standard_normal(layout.size, np.float32)
    return len(encode_vector(update, layout, codec(name), round=1))
