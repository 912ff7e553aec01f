"""One adapter for all nodes: the whole of it goes down, and the whole of it comes back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from flwr.app import ArrayRecord

from fedkron.exchange import Tree
from fedkron.flower.alternating import ALTERNATING, Alternating
from fedkron.flower.combining import combining
from fedkron.flower.global_adapter import (
    ARRAYS,
    FOR_ALL,
    TERMS,
    Answer,
    Combined,
    GlobalAdapter,
    Introduction,
    Sent,
    take_all,
)
from fedkron.flower.wire import to_arrays, to_state
from fedkron.layout import AdapterLayout


def one_for_all(layout: AdapterLayout, aggregation: str) -> GlobalAdapter:
    """One adapter for all nodes, combined by an aggregation, or one factor after the other."""
    if aggregation == ALTERNATING:
        return Alternating(layout)
    return OneForAll(layout, aggregation)


class OneForAll:
    """The adapter under one key. What an aggregation cannot put into it follows in records of their own.

    Those terms never change, so that a node which has them is not sent them again.
    """

    def __init__(self, layout: AdapterLayout, aggregation: str) -> None:
        combining(aggregation, layout)  # refuses what it does not know before anybody trains
        self._layout = layout
        self._aggregation = aggregation
        self._round = 0
        self._arrays = ArrayRecord()
        self._terms: dict[str, ArrayRecord] = {}

    def strangers(self, nodes: Sequence[int]) -> list[int]:  # noqa: ARG002
        """Nobody: all get the same."""
        return []

    def meet(self, node: int, introduction: Introduction) -> None:
        """Nothing depends on the node."""

    def adopt(self, round_: int, arrays: ArrayRecord) -> None:
        """Go on from this adapter."""
        self._round, self._arrays = round_, arrays

    def sent(self, node: int) -> Sent:  # noqa: ARG002
        """The adapter, and all terms that belong to the base by now."""
        return Sent(self._layout, {ARRAYS: self._arrays, **self._terms})

    def combine(self, answers: Iterable[Answer]) -> Combined:
        """Aggregate the adapters."""
        stream = combining(self._aggregation, self._layout)
        refused = take_all(answers, lambda answer: stream.add(answer.uploads[ARRAYS], answer.weight))
        combined = stream.finish()
        if combined.terms:
            self._terms[f"{TERMS}.{self._round}"] = to_arrays(combined.terms)
        return Combined(combined.adapter, combined.projection_error, refused)

    def held(self) -> Mapping[str, Sent]:
        """The one adapter."""
        return {FOR_ALL: self.sent(0)}

    def group_of(self, node: int) -> str:  # noqa: ARG002
        """There is only one."""
        return FOR_ALL

    def snapshot(self) -> dict[str, Tree]:
        """The terms that belong to the base by now."""
        return {"terms": {key: to_state(record) for key, record in self._terms.items()}}

    def restore(self, snapshot: Mapping[str, Tree], arrays: ArrayRecord, renamed: Mapping[int, int]) -> None:  # noqa: ARG002
        """Go on with these terms."""
        self._arrays = arrays
        self._terms = {key: to_arrays(terms) for key, terms in snapshot["terms"].items()}
