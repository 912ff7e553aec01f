"""What each node brought to a run, and what it cost: sums over rounds and ledger."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedkron.ledger import by_node, totals
from fedkron.runlog import NodeFigures, RunLog


@dataclass(frozen=True)
class Contribution:
    """One node over all rounds: sums, and the last loss, norm and accuracy that are known.

    `rounds` in which its update counted, `examples` it trained on in them (None where the run did not write
    that down), bytes of serialized messages.
    """

    node: str
    rounds: int | None
    failures: int | None
    examples: int | None
    bytes_up: int
    bytes_down: int
    train_loss: float | None
    update_norm: float | None
    accuracy: float | None


def contributions(log: RunLog) -> list[Contribution]:
    """All nodes that a run knows of, in the order of their names (`node_names`)."""
    names = node_names(log)
    seen: dict[str, list[NodeFigures]] = {}
    for entry in log.rounds:
        for node, figures in entry.nodes.items():
            seen.setdefault(names[node], []).append(figures)
    moved: dict[str, list[str]] = {}
    for node in by_node(log.transfers):
        moved.setdefault(names.get(node, node), []).append(node)
    transfers = by_node(log.transfers)
    found = []
    for name in sorted({*seen, *moved}):
        cost = totals(transfer for node in moved.get(name, []) for transfer in transfers[node])
        found.append(_contribution(name, seen.get(name, []), cost.message_up, cost.message_down))
    return found


def node_names(log: RunLog) -> Mapping[str, str]:
    """The name of each node that rounds tell of, by its id: task-partition, where that says which it is.

    Ids change when a run is gone on with; where two nodes of one round are called the same, ids it is.
    """
    rounds = [{node: _name(node, figures) for node, figures in entry.nodes.items()} for entry in log.rounds]
    unique = all(len(set(names.values())) == len(names) for names in rounds)
    # A node may have failed before it could say who it is.
    known = {node: name for names in rounds for node, name in names.items() if name != node}
    return {node: known.get(node, node) if unique else node for names in rounds for node in names}


def _name(node: str, figures: NodeFigures) -> str:
    return f"{figures.task}-{figures.partition}" if figures.task else node


def _contribution(name: str, rounds: list[NodeFigures], up: int, down: int) -> Contribution:
    trained = [figures.examples for figures in rounds if figures.examples is not None]
    return Contribution(
        name,
        len(trained) if rounds else None,
        sum(len(figures.failures) for figures in rounds) if rounds else None,
        sum(trained) if rounds else None,
        up,
        down,
        _last([figures.train_loss for figures in rounds]),
        _last([figures.update_norm for figures in rounds]),
        _last([figures.accuracy for figures in rounds]),
    )


def _last(values: list[float | None]) -> float | None:
    return next((value for value in reversed(values) if value is not None), None)
