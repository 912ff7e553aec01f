"""One adapter per task: nodes that have the same task share what they learn, and nothing with the others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from flwr.app import ArrayRecord

from fedkron.exchange import Tree
from fedkron.flower.global_adapter import Answer, Combined, Introduction, Sent, renamed_keys
from fedkron.flower.groups import Groups
from fedkron.layout import AdapterLayout


class PerTask:
    """Groups by the task that each node says it has."""

    def __init__(self, layout: AdapterLayout, aggregation: str) -> None:
        self._groups = Groups(layout, aggregation)
        self._tasks: dict[int, str] = {}

    def strangers(self, nodes: Sequence[int]) -> list[int]:
        """Nodes whose task is not known."""
        return [node for node in nodes if node not in self._tasks]

    def meet(self, node: int, introduction: Introduction) -> None:
        """Remember a node's task."""
        self._tasks[node] = introduction.task

    def adopt(self, round_: int, arrays: ArrayRecord) -> None:  # noqa: ARG002
        """Take this adapter for the mean of all tasks."""
        self._groups.adopt(arrays)

    def sent(self, node: int) -> Sent:
        """The adapter of the node's task."""
        return self._groups.sent(self._tasks[node])

    def combine(self, answers: Iterable[Answer]) -> Combined:
        """Combine the answers of each task."""
        return self._groups.combine(answers, self.group_of)

    def held(self) -> Mapping[str, Sent]:
        """The mean of all tasks, and the adapter of each."""
        return self._groups.held()

    def group_of(self, node: int) -> str:
        """The node's task."""
        return self._tasks[node]

    def snapshot(self) -> dict[str, Tree]:
        """The adapters, and who has which task."""
        return {"groups": self._groups.snapshot(), "tasks": {str(n): task for n, task in self._tasks.items()}}

    def restore(self, snapshot: Mapping[str, Tree], arrays: ArrayRecord, renamed: Mapping[int, int]) -> None:
        """Go on with these."""
        self._groups.restore(snapshot["groups"], arrays)
        self._tasks = renamed_keys(snapshot["tasks"], renamed)
