"""An adapter of its own size for each node: a small device trains fewer ranks than a large one.

The server keeps the adapter of the largest size. Each node is sent the best approximation of it in its own
size, and what it learns is added to the whole (`fedkron.aggregation.heterogeneous`): directions that a small
node has never seen stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from flwr.app import ArrayRecord

from fedkron.aggregation import Heterogeneous, resized, size_name, sized
from fedkron.errors import ConfigError
from fedkron.exchange import Tree
from fedkron.flower.global_adapter import (
    ARRAYS,
    FOR_ALL,
    Answer,
    Combined,
    Introduction,
    Sent,
    renamed_keys,
    take_all,
)
from fedkron.flower.wire import to_arrays, to_state
from fedkron.layout import AdapterLayout

MERGED = "merged"


class PerSize:
    """Adapters by size. Raises `ConfigError` for an aggregation other than merged: factors differ in
    shape.
    """

    def __init__(self, layout: AdapterLayout, aggregation: str) -> None:
        if aggregation != MERGED:
            raise ConfigError(
                f"aggregation {aggregation!r} is not for adapters of different sizes: use {MERGED!r}"
            )
        self._layout = layout
        self._layouts: dict[str, AdapterLayout] = {}
        self._sizes: dict[int, str] = {}
        self._arrays: dict[str, ArrayRecord] = {}
        self._common = ArrayRecord()

    def strangers(self, nodes: Sequence[int]) -> list[int]:
        """Nodes whose size is not known."""
        return [node for node in nodes if node not in self._sizes]

    def meet(self, node: int, introduction: Introduction) -> None:
        """Remember a node's size; raises `ConfigError` for one that the global adapter cannot take."""
        layout = sized(self._layout, introduction.size)
        name = size_name(introduction.size)
        self._layouts[name] = layout
        self._sizes[node] = name
        if name not in self._arrays and len(self._common):
            self._arrays[name] = self._resized(name)

    def adopt(self, round_: int, arrays: ArrayRecord) -> None:  # noqa: ARG002
        """Go on from this adapter in all sizes."""
        if arrays is self._common:
            return
        self._common = arrays
        self._arrays = {name: self._resized(name) for name in self._layouts}

    def sent(self, node: int) -> Sent:
        """The global adapter in the node's size."""
        return self._of_size(self._sizes[node])

    def combine(self, answers: Iterable[Answer]) -> Combined:
        """Add what nodes of all sizes have learnt."""
        sent = [(self._layouts[name], to_state(record)) for name, record in self._arrays.items()]
        combining = Heterogeneous(self._layout, to_state(self._common), sent)
        refused = take_all(answers, lambda a: combining.add(a.uploads[ARRAYS].opened(), a.weight))
        combined = combining.finish()
        return Combined(combined.adapter, combined.projection_error, refused)

    def held(self) -> Mapping[str, Sent]:
        """The global adapter, and how the nodes of each size get it."""
        whole = Sent(self._layout, {ARRAYS: self._common})
        return {FOR_ALL: whole, **{name: self._of_size(name) for name in sorted(self._arrays)}}

    def group_of(self, node: int) -> str:
        """The node's size."""
        return self._sizes[node]

    def snapshot(self) -> dict[str, Tree]:
        """The adapter in each size, and who has which."""
        return {
            "layouts": {name: layout.to_json() for name, layout in self._layouts.items()},
            "arrays": {name: to_state(record) for name, record in self._arrays.items()},
            "sizes": {str(node): name for node, name in self._sizes.items()},
        }

    def restore(self, snapshot: Mapping[str, Tree], arrays: ArrayRecord, renamed: Mapping[int, int]) -> None:
        """Go on with these: as they were sent, because resizing depends on what was sent before."""
        self._common = arrays
        self._layouts = {name: AdapterLayout.from_json(text) for name, text in snapshot["layouts"].items()}
        self._arrays = {name: to_arrays(state) for name, state in snapshot["arrays"].items()}
        self._sizes = renamed_keys(snapshot["sizes"], renamed)

    def _of_size(self, name: str) -> Sent:
        return Sent(self._layouts[name], {ARRAYS: self._arrays[name]})

    def _resized(self, name: str) -> ArrayRecord:
        layout = self._layouts[name]
        if layout.contract == self._layout.contract:
            return self._common
        before = to_state(self._arrays[name]) if name in self._arrays else None
        return to_arrays(resized(to_state(self._common), self._layout, layout, before))
