"""What a node knows survives its process: Flower's state of a node, kept on the node's own disk.

Flower keeps `context.state` in the memory of the SuperNode, for one run. A node that is restarted, or whose
run is gone on with later (`fedkron run --resume`), would have lost its head and what error feedback has put
aside. `durable_state` writes the state down after each message, for each round of training in a file of its
own. A round that is repeated, because the server did not get to its end, starts from the state before it:
what the aborted attempt did to head and residuals is undone, so that nothing is sent twice and nothing is
lost.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from logging import WARNING
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp.typing import ClientAppCallable
from flwr.common import log

from fedkron.errors import SnapshotError
from fedkron.exchange import Tree, load_snapshot, save_snapshot
from fedkron.flower.secure_memory import NAME, SESSION
from fedkron.flower.strategy import RESUMES
from fedkron.flower.wire import round_of

Mod = Callable[[Message, Context, ClientAppCallable], Message]

STATE = "state"
"""Folder of a node's states in its own folder."""

NEVER_KEPT = frozenset({SESSION})

_PLACE = "fedkron.durable"
"""Key in the state: in which file it is kept."""

KEPT_ROUNDS = 2
"""A round that is repeated needs the one before it."""

_RECORDS = {"arrays": ArrayRecord, "metrics": MetricRecord, "config": ConfigRecord}
_FILE = re.compile(r"round-(\d+)\.safetensors")


def durable_state(folder_of: Callable[[Context], Path]) -> Mod:
    """The mod; put it right before `compressed_exchange`. `folder_of` names the node's own folder.

    Files lie in `state/RUN/` there, RUN being the id of the run in which the first round was. One that is
    damaged is left out with a warning: what it held is lost, and the node goes on with what it has. The
    secrets of a round of secure aggregation are never written: a round that is repeated has others.
    """

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        kind = message.metadata.message_type.partition(".")[0]
        if kind in (MessageType.TRAIN, MessageType.EVALUATE):
            folder = folder_of(context) / STATE / _run_of(message, context)
            number, trains = round_of(message), kind == MessageType.TRAIN
            rounds = _kept_rounds(folder)
            if (trains and any(kept >= number for kept in rounds)) or _PLACE not in context.state:
                # What is kept is of an earlier message, or of a process that is no more.
                under_way = {key: context.state[key] for key in (SESSION, NAME) if key in context.state}
                found = _found(folder, [kept for kept in rounds if not trains or kept < number])
                context.state = RecordDict({**found, **under_way})
            latest = number if trains else max(rounds, default=0)
            context.state[_PLACE] = ConfigRecord({"run": folder.name, "round": latest})
        reply = call_next(message, context)
        place = context.state.get(_PLACE)
        if isinstance(place, ConfigRecord) and not reply.has_error():
            # A query, too: what was uploaded may count from now on (secure aggregation).
            _keep(folder_of(context) / STATE / str(place["run"]), int(place["round"]), context.state)  # type: ignore[arg-type]
        return reply

    return mod


def _run_of(message: Message, context: Context) -> str:
    for record in message.content.config_records.values():
        if isinstance(resumed := record.get(RESUMES), str):
            return resumed
    return str(context.run_id)


def _kept_rounds(folder: Path) -> list[int]:
    """Rounds of training whose state is kept, in order; 0 stands for none yet."""
    matches = (_FILE.fullmatch(path.name) for path in folder.glob("*") if folder.is_dir())
    return sorted(int(match[1]) for match in matches if match)


def _found(folder: Path, rounds: list[int]) -> RecordDict:
    """The state after the last of these rounds that can be read; empty without any."""
    for number in reversed(rounds):
        try:
            return _records(load_snapshot(_file(folder, number)))
        except SnapshotError as error:
            log(WARNING, "this node's state is left out: %s", error)
    return RecordDict()


def _keep(folder: Path, number: int, state: RecordDict) -> None:
    """Write the state after a round of training, then delete what is not needed any more."""
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # it tells of this node's data
    save_snapshot(_file(folder, number), _tree(state))
    *old, _ = [kept for kept in _kept_rounds(folder) if kept <= number]
    aborted = [kept for kept in _kept_rounds(folder) if kept > number]
    for kept in [*old[: 1 - KEPT_ROUNDS], *aborted]:
        _file(folder, kept).unlink(missing_ok=True)


def _file(folder: Path, number: int) -> Path:
    return folder / f"round-{number}.safetensors"


def _tree(state: RecordDict) -> dict[str, Tree]:
    kinds = {kind: name for name, kind in _RECORDS.items()}
    return {
        key: [
            kinds[type(record)],
            {name: v.numpy() if isinstance(v, Array) else v for name, v in record.items()},
        ]
        for key, record in state.items()
        if key not in NEVER_KEPT
    }


def _records(tree: dict[str, Tree]) -> RecordDict:
    return RecordDict(
        {
            key: _RECORDS[kind](
                {name: Array(v) if isinstance(v, np.ndarray) else v for name, v in values.items()}
            )
            for key, (kind, values) in tree.items()
        }
    )
