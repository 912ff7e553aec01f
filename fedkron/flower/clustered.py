"""One adapter per cluster of nodes whose updates are alike (clustered federated learning).

The nodes first train one adapter together. After `warm_up` rounds the server compares their latest updates by
cosine similarity (Sattler, Müller and Samek 2019, arXiv 1910.01991) and from then on keeps one adapter for
each cluster. It never asks what the nodes' tasks are, and keeps a sketch of each update, not the update.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from flwr.app import ArrayRecord

from fedkron.aggregation.clusters import (
    NO_CLUSTER,
    Sketch,
    UpdateSketch,
    centroids_of,
    clusters_of,
    nearest_cluster,
)
from fedkron.errors import ConfigError
from fedkron.exchange import Tree
from fedkron.flower.global_adapter import (
    ARRAYS,
    FOR_ALL,
    Answer,
    Combined,
    Introduction,
    MakeAdapter,
    Sent,
    renamed_keys,
)
from fedkron.flower.groups import Groups
from fedkron.flower.uploads import Watched
from fedkron.flower.wire import to_state
from fedkron.layout import AdapterLayout, State, flatten


def clustered(count: int, warm_up: int) -> MakeAdapter:
    """So many clusters, found after so many rounds. Raises `ConfigError` for less than 2 or 1."""
    if count < 2:
        raise ConfigError(f"the number of clusters is {count}: it must be at least 2")
    if warm_up < 1:
        raise ConfigError(f"clusters are to be found after {warm_up} rounds: it must be at least 1")
    return lambda layout, aggregation: Clustered(layout, aggregation, count, warm_up)


class Clustered:
    """Groups by similarity of updates; a node that comes later joins the nearest cluster with its first
    one.
    """

    def __init__(self, layout: AdapterLayout, aggregation: str, count: int, warm_up: int) -> None:
        self._groups = Groups(layout, aggregation)
        self._layout = layout
        self._sketch = UpdateSketch(layout.size)
        self._count, self._warm_up = count, warm_up
        self._round = 0
        self._sketches: dict[int, Sketch] = {}
        self._clusters: dict[int, str] = {}
        self._centroids: Sketch | None = None

    def strangers(self, nodes: Sequence[int]) -> list[int]:  # noqa: ARG002
        """Nobody: what nodes learn says enough."""
        return []

    def meet(self, node: int, introduction: Introduction) -> None:
        """Nothing depends on what the node says."""

    def adopt(self, round_: int, arrays: ArrayRecord) -> None:
        """Take this adapter for the mean of all clusters, and for the only one while warming up."""
        self._round = round_
        self._groups.adopt(arrays)

    def sent(self, node: int) -> Sent:
        """The adapter of the node's cluster, or the mean of all."""
        return self._groups.sent(self.group_of(node))

    def combine(self, answers: Iterable[Answer]) -> Combined:
        """Combine the answers of each cluster, or all of them while there are no clusters.

        A node's first answers say where it belongs, from the next round on, and go into the mean of all.
        """
        combined = self._groups.combine(map(self._sketched, answers), self.group_of)
        self._clusters |= self._found()
        return combined

    def held(self) -> Mapping[str, Sent]:
        """The mean of all clusters, and the adapter of each."""
        return self._groups.held()

    def group_of(self, node: int) -> str:
        """The node's cluster."""
        return self._clusters.get(node, FOR_ALL)

    def snapshot(self) -> dict[str, Tree]:
        """The clusters, their adapters, and the sketches they were found by."""
        return {
            "groups": self._groups.snapshot(),
            "sketches": {str(node): sketch for node, sketch in self._sketches.items()},
            "clusters": {str(node): cluster for node, cluster in self._clusters.items()},
            "centroids": self._centroids,
        }

    def restore(self, snapshot: Mapping[str, Tree], arrays: ArrayRecord, renamed: Mapping[int, int]) -> None:
        """Go on with these."""
        self._groups.restore(snapshot["groups"], arrays)
        self._sketches = renamed_keys(snapshot["sketches"], renamed)
        self._clusters = renamed_keys(snapshot["clusters"], renamed)
        self._centroids = snapshot["centroids"]

    def _sketched(self, answer: Answer) -> Answer:
        """Keep a sketch of what a node without a cluster has learnt."""
        node = answer.origin.node
        if node in self._clusters:
            return answer
        received = to_state(self.sent(node).records[ARRAYS])

        def keep(trained: State) -> None:
            update = flatten(trained, self._layout) - flatten(received, self._layout)
            self._sketches[node] = self._sketch.of(update)

        return replace(answer, uploads={ARRAYS: Watched(answer.uploads[ARRAYS], keep)})

    def _found(self) -> dict[int, str]:
        """The clusters of nodes that have a sketch and no cluster yet; none while warming up."""
        nodes = [node for node in self._sketches if node not in self._clusters]
        if self._round < self._warm_up or not nodes:
            return {}
        sketches = np.stack([self._sketches[node] for node in nodes])
        if self._centroids is None:
            if np.count_nonzero(sketches.any(axis=1)) < self._count:  # more nodes may learn something later
                return {}
            labels = clusters_of(sketches, self._count)
            self._centroids = centroids_of(sketches, labels)
        else:
            labels = nearest_cluster(sketches, self._centroids)
        found = zip(nodes, labels.tolist(), strict=True)
        return {node: f"cluster-{label + 1}" for node, label in found if label != NO_CLUSTER}
