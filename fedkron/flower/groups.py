"""An adapter for each group of nodes, and the mean of all: what the ways of grouping have in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from flwr.app import ArrayRecord

from fedkron.aggregation import aggregator
from fedkron.errors import ConfigError
from fedkron.exchange import Tree
from fedkron.flower.combining import Combining, combining
from fedkron.flower.global_adapter import ARRAYS, FOR_ALL, Answer, Combined, Sent, take_all
from fedkron.flower.wire import to_arrays, to_state
from fedkron.layout import AdapterLayout

AGGREGATIONS_OF_GROUPS = ("factorwise", "merged")


class Groups:
    """Adapters by group name. Nodes without a group get the mean of all groups.

    Raises `ConfigError` for an aggregation that changes the base or trains a part: groups share neither.
    """

    def __init__(self, layout: AdapterLayout, aggregation: str) -> None:
        if aggregation not in AGGREGATIONS_OF_GROUPS:
            raise ConfigError(
                f"aggregation {aggregation!r} is not for groups of nodes: use one of "
                f"{', '.join(AGGREGATIONS_OF_GROUPS)}"
            )
        aggregator(aggregation, layout)  # refuses a kind that it does not know before anybody trains
        self._layout = layout
        self._aggregation = aggregation
        self._common = ArrayRecord()
        self._arrays: dict[str, ArrayRecord] = {}

    def adopt(self, common: ArrayRecord) -> None:
        """Take this adapter for the mean of all groups; theirs stay as they are."""
        self._common = common

    def sent(self, group: str) -> Sent:
        """What the nodes of a group are sent; a new group starts from the mean, which `FOR_ALL` has."""
        return Sent(self._layout, {ARRAYS: self._arrays.get(group, self._common)})

    def combine(self, answers: Iterable[Answer], group_of: Callable[[int], str]) -> Combined:
        """Combine each group's answers by itself; the result is the mean of those groups, by their weights.

        Its projection error is the largest of any group. What `FOR_ALL` answered is in the mean only.
        """
        streams: dict[str, Combining] = {}
        weights: Counter[str] = Counter()

        def take(answer: Answer) -> None:
            group = group_of(answer.origin.node)
            if group not in streams:
                streams[group] = combining(self._aggregation, self._layout)
            streams[group].add(answer.uploads[ARRAYS], answer.weight)
            weights[group] += answer.weight  # type: ignore[assignment]  # Counter takes floats

        refused = take_all(answers, take)
        common = aggregator(self._aggregation, self._layout)
        arrays, errors = {}, []
        for group, weight in sorted(weights.items()):
            combined = streams[group].finish()
            common.add(combined.adapter, weight)
            arrays[group] = to_arrays(combined.adapter)
            errors += [combined.projection_error] if combined.projection_error is not None else []
        result = Combined(common.finish().adapter, max(errors, default=None), refused)
        # Those without a group have what is handed back, which the strategy may change.
        self._arrays |= {group: record for group, record in arrays.items() if group != FOR_ALL}
        return result

    def snapshot(self) -> dict[str, Tree]:
        """The adapter of each group."""
        return {group: to_state(record) for group, record in self._arrays.items()}

    def restore(self, snapshot: Mapping[str, Tree], common: ArrayRecord) -> None:
        """Go on with these adapters."""
        self._common = common
        self._arrays = {group: to_arrays(state) for group, state in snapshot.items()}

    def held(self) -> Mapping[str, Sent]:
        """The mean of all groups, and each group's adapter."""
        return {FOR_ALL: self.sent(FOR_ALL), **{group: self.sent(group) for group in sorted(self._arrays)}}
