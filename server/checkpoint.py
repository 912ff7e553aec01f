"""Checkpoints: after each round, all that the server needs to go on from there, in one file.

The file is replaced in one step. A run that is gone on with has the same bytes as one that was never
interrupted: chosen clients, adapter, shared states, optimizer and limits are those of the last whole round.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from flwr.app import ArrayRecord

from fedkron.errors import SnapshotError
from fedkron.exchange import Tree, load_snapshot, save_snapshot
from fedkron.flower import FedKron
from fedkron.flower.admission import Origin
from fedkron.flower.grid import CompressedGrid
from fedkron.rundir import CHECKPOINT

CHECKPOINT_VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """A run after a round: `run` is the id it began with, `nodes` how many there were then."""

    run: str
    contract: str
    nodes: int
    strategy: Mapping[str, Tree]
    grid: Mapping[str, Tree]

    @property
    def round(self) -> int:
        """The last whole round."""
        return int(self.strategy["round"])

    @property
    def origins(self) -> list[Origin]:
        """The nodes that have answered so far."""
        return [Origin(*origin) for origin in self.strategy["origins"]]


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> str:
    """Write the checkpoint of a run folder; returns its SHA-256."""
    tree = {"version": CHECKPOINT_VERSION, **vars(checkpoint)}
    return save_snapshot(folder / CHECKPOINT, tree)


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """The checkpoint of a run folder; None where no round was finished.

    Raises `SnapshotError` for one that is damaged or of another version.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    tree = load_snapshot(path)
    if (version := tree.pop("version", None)) != CHECKPOINT_VERSION:
        raise SnapshotError(
            f"{path} has checkpoint version {version!r}, known here is {CHECKPOINT_VERSION}: "
            "go on with the fedkron that wrote it"
        )
    try:
        return Checkpoint(**tree)
    except TypeError as error:
        raise SnapshotError(f"{path} is not a checkpoint: {error}") from None


def renamed_nodes(then: Iterable[Origin], now: Iterable[Origin]) -> dict[int, int]:
    """Today's ids of nodes by their ids at the time of a checkpoint.

    A node is known by its task and partition: ids may be new in every run. Where two say that they are the
    same one, neither is taken for it.
    """
    ids: dict[tuple[str, int], list[int]] = {}
    for origin in now:
        ids.setdefault((origin.task, origin.partition), []).append(origin.node)
    found = ((origin.node, ids.get((origin.task, origin.partition), [])) for origin in then)
    return {old: new[0] for old, new in found if len(new) == 1}


def restored(
    checkpoint: Checkpoint, strategy: FedKron, grid: CompressedGrid, now: Iterable[Origin]
) -> ArrayRecord:
    """Bring strategy and grid to where the checkpoint was made; returns the arrays to start from.

    `now` are the nodes that are there.
    """
    renamed = renamed_nodes(checkpoint.origins, now)
    grid.restore(checkpoint.grid, renamed)
    return strategy.restore(checkpoint.strategy, renamed, checkpoint.run)
