"""What the server holds, what each node is sent of it, and how the nodes' answers change it.

`FedKron` leaves all of this to a `GlobalAdapter`: one adapter for all (`one_for_all`), one factor after the
other (`alternating`), an adapter of its own size for each node (`per_size`), or one for each group of nodes
(`per_task`, `clustered`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from flwr.app import ArrayRecord

from fedkron.aggregation import Size
from fedkron.errors import FedKronError, RunError
from fedkron.exchange import Tree
from fedkron.flower.admission import Origin
from fedkron.flower.uploads import Upload
from fedkron.layout import AdapterLayout, State

V = TypeVar("V")

ARRAYS = "arrays"
"""Key of the record with the adapter; parts of it have keys that begin with it."""

TERMS = "terms"
"""Begin of the keys of records with Kronecker terms that everybody folds into the base."""

FOR_ALL = ""
"""Name of the adapter that is for everybody, among those that are held."""


def is_adapter(key: str) -> bool:
    """Whether a record with this key holds an adapter or a part of it."""
    return key.partition(".")[0] == ARRAYS


@dataclass(frozen=True)
class Introduction:
    """What a node says of itself before it is sent anything: its task, and its adapter's size."""

    task: str
    size: Size


@dataclass(frozen=True)
class Sent:
    """What a node is sent: records of arrays by key, of which it trains those in `trains` and answers them.

    `layout` is that of its whole adapter, which may be spread over several records.
    """

    layout: AdapterLayout
    records: Mapping[str, ArrayRecord]
    trains: tuple[str, ...] = (ARRAYS,)


@dataclass(frozen=True)
class Answer:
    """What an admitted node answered: its uploads by record key, and its weight in a mean."""

    origin: Origin
    uploads: Mapping[str, Upload]
    weight: float


@dataclass(frozen=True)
class Combined:
    """What the answers made of the adapter for all, and the relative error of its projection (or None).

    `refused` says, by node, why its answer took no part.
    """

    adapter: State
    projection_error: float | None
    refused: Mapping[int, str] = field(default_factory=dict)


class GlobalAdapter(Protocol):
    """Adapters that the server holds. The strategy calls `adopt` before each round of messages."""

    def strangers(self, nodes: Sequence[int]) -> list[int]:
        """Those of some nodes that have to introduce themselves first."""

    def meet(self, node: int, introduction: Introduction) -> None:
        """Remember what a node says of itself; raises a `FedKronError` for what cannot take part."""

    def adopt(self, round_: int, arrays: ArrayRecord) -> None:
        """Go on from this adapter for all in this round: a strategy may have changed it since `combine`."""

    def sent(self, node: int) -> Sent:
        """What a node is sent."""

    def combine(self, answers: Iterable[Answer]) -> Combined:
        """Take over what the nodes learnt, one after the other.

        Raises a `FedKronError`, changing nothing, when that fails, as it does when all were refused.
        """

    def held(self) -> Mapping[str, Sent]:
        """All adapters by name, as nodes are sent them; the one for all is `FOR_ALL`."""

    def group_of(self, node: int) -> str:
        """Which of those a node is sent."""

    def snapshot(self) -> dict[str, Tree]:
        """What it has learnt beside the adapter for all, between two rounds: for `restore`."""

    def restore(self, snapshot: Mapping[str, Tree], arrays: ArrayRecord, renamed: Mapping[int, int]) -> None:
        """Go on where a snapshot was made, with this adapter for all.

        `renamed` has today's ids of the nodes that are still there, by their ids at that time.
        """


def renamed_keys(by_node: Mapping[str, V], renamed: Mapping[int, int]) -> dict[int, V]:
    """What a snapshot holds by node, for the nodes that are still there."""
    return {renamed[int(node)]: value for node, value in by_node.items() if int(node) in renamed}


def take_all(answers: Iterable[Answer], take: Callable[[Answer], object]) -> dict[int, str]:
    """Call `take` with each answer; returns, by node, why some were refused, which `take` says by raising.

    Raises `RunError` when all were refused.
    """
    refused, taken = {}, 0
    for answer in answers:
        try:
            take(answer)
            taken += 1
        except FedKronError as error:
            refused[answer.origin.node] = f"node {answer.origin.node}: upload refused: {error}"
    if refused and not taken:
        raise RunError(f"all {len(refused)} uploads were refused; first: {next(iter(refused.values()))}")
    return refused


MakeAdapter = Callable[[AdapterLayout, str], GlobalAdapter]
"""A global adapter of a layout, with the aggregation of this name.

Raises `ConfigError` for a name that it does not know, `AdapterError` for a kind that the aggregation does
not.
"""
