"""The adapters that a device holds, by name: loaded, replaced and dropped while requests run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from threading import Lock

import numpy as np

from fedkron.edge.device_adapter import (
    DEVICE_FORMAT,
    DeviceAdapter,
    check_fits,
    device_adapter,
    load_device_adapter,
)
from fedkron.edge.heads import head_file
from fedkron.edge.slot import SlotLayout
from fedkron.edge.texts import Feeds
from fedkron.errors import TaskError
from fedkron.exchange import AdapterFile, HeadFile, file_format, load_adapter

DEFAULT = "default"
"""Name of the adapter that a bundle was exported with."""


class AdapterStore:
    """Adapters by name, all checked against one slot. Safe to read and change from several threads.

    A change replaces an adapter as a whole: whoever looked it up before goes on with the old one.
    """

    def __init__(self, slot: SlotLayout, hidden: int) -> None:
        self.slot = slot
        self._hidden = hidden
        self._adapters: dict[str, DeviceAdapter] = {}
        self._lock = Lock()

    def __getitem__(self, name: str) -> DeviceAdapter:
        """Raises `TaskError` for an adapter that is not there."""
        if (found := self._adapters.get(name)) is None:
            known = ", ".join(map(repr, sorted(self._adapters)[:20])) or "none"
            raise TaskError(f"adapter {name!r} is not loaded: there are {known}")
        return found

    def snapshot(self) -> dict[str, DeviceAdapter]:
        """The adapters that are there at this moment."""
        return dict(self._adapters)

    def put(self, name: str, adapter: DeviceAdapter) -> None:
        """Hold an adapter under this name, in place of another if there is one.

        Raises `ContractError` or `AdapterError`, and changes nothing, when it does not fit.
        """
        check_fits(adapter, self.slot, self._hidden)
        with self._lock:
            # The same strings for all: of thousands, each would have its own.
            self._adapters[name] = replace(
                adapter, name=name, contract=self.slot.adapter.contract, slot_hash=self.slot.hash
            )

    def load(self, path: Path, name: str = "") -> str:
        """Hold the adapter in a file; returns its name, by default that of the file without its ending.

        A device adapter brings its heads; an adapter file of training gets those of the default adapter. The
        file is read and checked whole, so it may be replaced (by renaming) at any time. Raises like `put`,
        and `AdapterError` for a file that cannot be read.
        """
        name = name or path.stem
        if file_format(path) == DEVICE_FORMAT:
            self.put(name, load_device_adapter(path, self.slot, self._hidden))
        else:
            self.add(name, load_adapter(path))
        return name

    def add(self, name: str, adapter: AdapterFile, heads: Sequence[HeadFile] = ()) -> None:
        """Encode an adapter and hold it; tasks without a head among `heads` get that of the default adapter.

        Raises like `fedkron.edge.device_adapter.device_adapter`, and changes nothing then.
        """
        given = {head.task for head in heads}
        default = self._adapters.get(DEFAULT)
        kept = [head_file(head, default.contract) for head in default.heads] if default else []
        all_heads = [*heads, *(head for head in kept if head.task not in given)]
        self.put(name, device_adapter(name, adapter, all_heads, self.slot, self._hidden))

    def drop(self, name: str) -> None:
        """Forget an adapter; raises `TaskError` when it is not there."""
        with self._lock:
            self[name]
            del self._adapters[name]


def slot_feeds(adapters: Sequence[DeviceAdapter]) -> Feeds:
    """The graph's inputs for one adapter for all rows, or for an adapter per row."""
    if all(adapter is adapters[0] for adapter in adapters):
        return {name: array[None] for name, array in adapters[0].arrays.items()}
    return {name: np.stack([a.arrays[name] for a in adapters]) for name in adapters[0].arrays}
