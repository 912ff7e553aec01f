"""What a round of a cell will cost, from the base's configuration alone."""

from __future__ import annotations

from functools import cache

from fedkron.estimate import payload_bytes
from fedkron.layout import AdapterLayout
from fedkron.settings import AdapterSettings
from fedkron.sweep.grid import Cell


def round_bytes(cell: Cell) -> tuple[int, int]:
    """Payload bytes up and down in a usual round, all chosen nodes together: one update and one change of the
    adapter each. The first round, in which the whole adapter goes down, and Flower's envelopes come on top.

    Raises what `empty_backbone` and `attach` raise.
    """
    settings = cell.settings
    layout = _layout(settings.base, settings.adapter)
    chosen = max(1, round(settings.fraction_train * cell.simulation.nodes))
    up, down = (_payload_bytes(layout, name) for name in (settings.codec.upload, settings.codec.broadcast))
    return chosen * up, chosen * down


@cache
def _layout(base: str, adapter: AdapterSettings) -> AdapterLayout:
    from fedkron.adapters import adapter_layout, attach
    from fedkron.base import empty_backbone

    return adapter_layout(attach(empty_backbone(base), adapter.spec()), base="")


_payload_bytes = cache(payload_bytes)
