"""Our forms of a base with an adapter, merged or with a slot, made by the functions that write a bundle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto

from benchmarks.edge_peers.cases import Batch, Logits
from benchmarks.edge_peers.latency import BASE, Contestant
from fedkron.edge.fold import attach_head, fold_adapter
from fedkron.edge.graph import copy_model, fetch_weights, save_model
from fedkron.edge.quantize import quantize
from fedkron.edge.session import open_session
from fedkron.edge.slot import SlotLayout
from fedkron.edge.slot_graph import insert_head, insert_slot
from fedkron.exchange import AdapterFile, HeadFile

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Workshop:
    """Makes graphs and opens them.

    `features` is the exported base, whose weights lie in `folder`; `form` is how they are stored in the
    graphs (`fedkron.edge.quantize.BASE_FORMS`); `threads` are those of a call.
    """

    features: ModelProto
    folder: Path
    head: HeadFile
    form: str
    threads: int

    @property
    def bare_name(self) -> str:
        """Name of the base in this form."""
        return BASE if self.form == "fp32" else f"{BASE} {self.form}"

    def bare(self) -> Contestant:
        """The base and an ordinary head."""
        call = self._with_head(self.bare_name, copy_model(self.features))
        return Contestant(self.bare_name, "base", call, [], self.bare_name, exact=self._exact)

    def merged(self, adapter: AdapterFile) -> Contestant:
        """The same with the adapter folded in."""
        graph = copy_model(self.features)
        fold_adapter(graph, adapter.layout, adapter.state, self.folder)
        name = self._named("merged")
        return Contestant(
            name, "merged", self._with_head(name, graph), [adapter], self.bare_name, exact=self._exact
        )

    def slotted(self, name: str, encoding: str, several: Sequence[AdapterFile]) -> list[Contestant]:
        """A graph with a slot: the first adapter for all rows; and each row with its own."""
        name, graph = self._named(name), copy_model(self.features)
        slot = insert_slot(graph, several[0].layout, encoding)
        insert_head(graph, self.head.weight.shape[1])
        session = self._opened(name, self._stored(graph))
        one, rows = self._feeds(slot, several[:1]), self._feeds(slot, several)
        exact = self._exact and encoding == "fp32"
        bare, many = self.bare_name, f"{name}, {len(several)} adapters"
        return [
            Contestant(name, "slot", _caller(session, one), several[:1], bare, exact=exact),
            Contestant(many, "slot", _caller(session, rows), several, bare, name, exact),
        ]

    @property
    def _exact(self) -> bool:
        return self.form == "fp32"

    def _named(self, name: str) -> str:
        return name if self._exact else f"{self.bare_name}, {name}"

    def _with_head(self, name: str, graph: ModelProto) -> Callable[[Batch], Logits]:
        graph = self._stored(graph)
        attach_head(graph, self.head.weight, self.head.bias)
        return _caller(self._opened(name, graph), {})

    def _stored(self, graph: ModelProto) -> ModelProto:
        if self._exact:
            return graph
        fetch_weights(graph, self.folder)
        return quantize(graph, self.form)

    def _opened(self, name: str, graph: ModelProto) -> Any:  # noqa: ANN401
        path = self.folder / f"{name}.onnx"
        save_model(graph, path)
        return open_session(path, self.threads)

    def _feeds(self, slot: SlotLayout, several: Sequence[AdapterFile]) -> Arrays:
        packed = [slot.pack(adapter.state) for adapter in several]
        head = np.column_stack([self.head.weight, self.head.bias]).astype(np.float32)
        stacked: Arrays = {name: np.stack([arrays[name] for arrays in packed]) for name in packed[0]}
        return stacked | {"head": np.stack([head] * len(packed))}


def _caller(session: Any, adapter: Arrays) -> Callable[[Batch], Logits]:  # noqa: ANN401
    def call(inputs: Batch) -> Logits:
        logits: Logits = session.run(None, inputs.feeds | adapter)[0]
        return logits

    return call
