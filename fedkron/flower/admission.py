"""Admission of replies: what a node answers is checked before it takes part in a mean.

Flower's own check ends the whole run when one reply is unlike the others. Here that reply is refused, and
counts as a failure of its node.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from flwr.app import ArrayRecord, Message, MetricRecord

from fedkron.errors import PayloadError
from fedkron.flower.wire import is_packed

ORIGIN = "origin"
"""Key of the ConfigRecord in which a client names its `task` (str) and `partition` (int)."""


class Origin(NamedTuple):
    """Where a reply comes from. Sorts the same in every run where partitions are given: node ids differ."""

    task: str
    partition: int
    node: int


def check_replies(
    replies: Sequence[Message], weight_key: str, expected: Mapping[int, Collection[str]]
) -> tuple[list[Message], dict[int, str]]:
    """Split replies with content into those that take part, and the reasons against the others, by node.

    A reply must be the only one of a node that one is expected of, and have the ArrayRecords that `expected`
    names for it and one MetricRecord of finite numbers: the one under `weight_key` positive, and all named
    like those of most replies. Its origin may be missing, not malformed.
    """
    sound: list[Message] = []
    refusals: dict[int, str] = {}
    seen: set[int] = set()
    for reply in replies:
        node = reply.metadata.src_node_id
        try:
            if node not in expected:
                raise PayloadError("nothing was asked of this node")
            if node in seen:
                raise PayloadError("it is the second of this node")
            seen.add(node)
            _check(reply, weight_key, expected[node])
            sound.append(reply)
        except PayloadError as error:
            refusals[node] = f"node {node}: reply refused: {error}"
    names = [", ".join(sorted(metrics_of(reply))) for reply in sound]
    counts = Counter(names)
    usual = max(counts, key=lambda found: (counts[found], found), default="")
    for reply, found in zip(sound, names, strict=True):
        if found != usual:
            node = reply.metadata.src_node_id
            refusals[node] = f"node {node}: reply refused: its metrics are {found}; most nodes sent {usual}"
    return [reply for reply, found in zip(sound, names, strict=True) if found == usual], refusals


def metrics_of(reply: Message) -> dict[str, float]:
    """The metrics of an admitted reply by name."""
    record: MetricRecord = next(iter(reply.content.metric_records.values()))
    return {name: float(value) for name, value in record.items()}  # type: ignore[arg-type]


def origin_of(reply: Message) -> Origin:
    """Where an admitted reply comes from; task "" and partition 0 when it does not say."""
    record: Mapping[str, object] = reply.content.config_records.get(ORIGIN, {})
    return Origin(record.get("task", ""), record.get("partition", 0), reply.metadata.src_node_id)  # type: ignore[arg-type]


def _check(reply: Message, weight_key: str, arrays: Collection[str]) -> None:
    content = reply.content
    found = [key for key, record in content.items() if isinstance(record, ArrayRecord) or is_packed(record)]
    if set(found) != set(arrays) or len(content.metric_records) != 1:
        raise PayloadError(
            f"it has ArrayRecords {sorted(found)} and {len(content.metric_records)} "
            f"MetricRecords, expected {sorted(arrays)} and 1"
        )
    record: MetricRecord = next(iter(content.metric_records.values()))
    for name, value in record.items():
        if isinstance(value, list) or not math.isfinite(value):
            raise PayloadError(f"metric {name!r} is {value!r:.40}, expected a finite number")
    if weight_key not in record or metrics_of(reply)[weight_key] <= 0:
        raise PayloadError(f"metric {weight_key!r} is {record.get(weight_key)}, expected a number above 0")
    task, partition, _ = origin_of(reply)
    if not isinstance(task, str) or not isinstance(partition, int):
        raise PayloadError(f"its origin has task {task!r} and partition {partition!r}, expected str and int")
