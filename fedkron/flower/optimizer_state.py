"""What Flower's server optimizers remember from round to round."""

from __future__ import annotations

from collections.abc import Mapping

from flwr.app import ArrayRecord
from flwr.serverapp.strategy import FedAvg

from fedkron.exchange import Tree
from fedkron.flower.wire import to_arrays

MEMORY = ("current_arrays", "momentum_vector", "m_t", "v_t")
"""Attributes of FedAvgM, FedAdagrad, FedAdam and FedYogi (Flower 1.41); each has some of them."""


def optimizer_snapshot(optimizer: FedAvg) -> dict[str, Tree]:
    """Its memory as plain values and arrays."""
    memory = {name: getattr(optimizer, name, None) for name in MEMORY}
    return {name: _plain(value) for name, value in memory.items() if value is not None}


def restore_optimizer(optimizer: FedAvg, snapshot: Mapping[str, Tree]) -> None:
    """Give it back its memory."""
    for name, (kind, value) in snapshot.items():
        setattr(optimizer, name, to_arrays(value) if kind == "record" else value)


def _plain(value: object) -> Tree:
    if isinstance(value, ArrayRecord):
        return ["record", {name: array.numpy() for name, array in value.items()}]
    return ["plain", value]
