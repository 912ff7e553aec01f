"""The figures of a run as TensorBoard scalars, a step per round, while it goes on."""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from fedkron.ledger import Ledger, Totals, totals_by_round
from fedkron.rundir import TENSORBOARD
from fedkron.runlog import RoundFigures
from fedkron.scalars import scalars


class ScalarLog:
    """Writes one event file into a run folder, for the rounds after the first `done`.

    What older files have of later rounds does not count any more: they were cut off. The writer is the one
    below tensorboardX's `SummaryWriter`, which hands events to a thread: a full disk would kill the thread,
    and the run would wait for it for ever. Here it raises `OSError` in the round, as other files of a run do.
    """

    def __init__(self, folder: Path, ledger: Ledger, done: int = 0) -> None:
        (folder / TENSORBOARD).mkdir(exist_ok=True)
        # Files of the same second would be one.
        number = len(list((folder / TENSORBOARD).iterdir()))
        self._writer = EventsWriter(str((folder / TENSORBOARD / "events").absolute()), f".{number}")
        self._writer.write_event(Event(step=done + 1, session_log=SessionLog(status=SessionLog.START)))
        self._writer.flush()
        self._ledger = ledger
        self._counted = 0
        self._rounds: defaultdict[int, Totals] = defaultdict(Totals)
        self._so_far = Totals()

    def write(self, entry: RoundFigures) -> None:
        """Add the figures of a round; they are on the disk when this returns."""
        self._count()
        now = time.time()
        for name, value in scalars(entry, self._rounds[entry.round], self._so_far).items():
            self._writer.write_event(Event(step=entry.round, wall_time=now, summary=scalar(name, value)))
        self._writer.flush()

    def _count(self) -> None:
        new = self._ledger.transfers[self._counted :]
        self._counted += len(new)
        for number, totals in totals_by_round(new).items():
            self._rounds[number] += totals
            self._so_far += totals
