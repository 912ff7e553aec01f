"""Many rounds in which nodes drop out at random: do all stay together, is it the mean of who answered?

Inside this process, with the programs of a real run and real serialized messages. The truth does not come
from the server: what nodes hold is read from their Flower state, uploads from the wire; means are float64.
"""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict

import server.app
from fedkron.compression.payload import decode_vector
from fedkron.exchange import load_adapter
from fedkron.flower.client_mod import SHARED
from fedkron.flower.wire import is_packed, payload_of
from fedkron.layout import AdapterLayout, Vector, flatten
from fedkron.rundir import ADAPTER, run_directory
from fedkron.settings import run_config
from simulations.chaos_study.reference import TRAIN, Fate, FatedGrid, round_of
from simulations.chaos_study.scenarios import tiny_settings
from simulations.chaos_study.verdict import Findings, Verdict, verdict_of

NODES = 4
ANSWERED_SHARE = 0.6
TOLERANCE = 1e-5
"""Largest difference to the float64 mean, relative to the largest element: float32 sums of few terms."""

EXPECTED = "nodes and server hold the same bits after each exchange; each round is the mean of who answered"


class WatchedGrid(FatedGrid):
    """Draws the fates, and keeps what was uploaded and what nodes and server hold."""

    def __init__(self, config: Mapping[str, object], folder: Path, rng: random.Random) -> None:
        super().__init__(NODES, config, self._draw)
        self._folder, self._rng = folder, rng
        self.drops = 0
        self.uploads: dict[int, list[tuple[float, bytes]]] = defaultdict(list)
        """By round: weight and payload of each answer."""
        self.held: dict[tuple[int, str], list[bytes]] = defaultdict(list)
        """By round and phase: the float32 vectors of the nodes that answered."""
        self.saved: dict[int, Vector] = {}
        """By round: the adapter that the server has saved after it."""

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Deliver messages; keep what came of those that are answered."""
        messages = list(messages)
        round_, phase = round_of(messages[0]), messages[0].metadata.message_type
        if phase == TRAIN:
            self.look_at_saved(round_ - 1)
        ids = list(super().push_messages(messages))
        for message_id in ids:
            reply = self._replies.get(message_id)
            if reply is None or reply.has_error():
                continue
            kept = self.contexts[reply.metadata.src_node_id].state[f"{SHARED}.arrays"]
            assert isinstance(kept, ConfigRecord)
            assert isinstance(kept["vector"], bytes)
            self.held[round_, phase].append(kept["vector"])
            for record in reply.content.config_records.values():
                if is_packed(record):
                    weight = float(reply.content.metric_records["metrics"]["num-examples"])  # type: ignore[arg-type]
                    self.uploads[round_].append((weight, payload_of(record)))
        return ids

    def look_at_saved(self, round_: int) -> None:
        """Keep what the server has saved after a round."""
        if round_ not in self.saved and (self._folder / ADAPTER).exists():
            adapter = load_adapter(self._folder / ADAPTER)
            if adapter.info["round"] == str(round_):
                self.saved[round_] = flatten(adapter.state, adapter.layout)

    def _draw(self, node: int, round_: int, phase: str) -> Fate:  # noqa: ARG002
        if self._rng.random() < ANSWERED_SHARE:
            return Fate.ANSWERED
        self.drops += 1
        return self._rng.choice((Fate.LATE, Fate.LOST))


def random_dropouts(tiny: Path, output: Path, *, rounds: int, codec: str) -> Verdict:
    """Run so many rounds with a codec both ways; the mean is checked where the codec is exact."""
    name, findings, began = f"dropouts-{codec}", Findings(), time.monotonic()
    changes = {"codec.upload": codec, "codec.broadcast": codec, "max-failure-fraction": 1.0}
    settings = tiny_settings(
        tiny, output, name, num_server_rounds=rounds, round_timeout=0.01, tasks=_tasks(tiny), **changes
    )
    folder = run_directory(settings, 1)
    grid = WatchedGrid(run_config(settings), folder, random.Random(rounds))
    server.app.app(grid, Context(1, 1, {}, RecordDict(), run_config(settings)))  # type: ignore[arg-type]
    grid.look_at_saved(rounds)
    findings.note(f"{grid.drops} messages of {NODES} nodes went unanswered in {rounds} rounds")
    _check_states(grid, rounds, findings)
    if codec == "fp32":
        _check_means(grid, rounds, load_adapter(folder / ADAPTER).layout, findings)
    return verdict_of(name, EXPECTED, folder, rounds, findings, seconds=time.monotonic() - began)


def _tasks(tiny: Path) -> str:
    return ",".join(str(tiny / task) for task in ("animals", "pets"))


def _check_states(grid: WatchedGrid, rounds: int, findings: Findings) -> None:
    """Nodes train on what was saved after the round before, and evaluate what is saved after theirs."""
    apart = [where for where, held in grid.held.items() if len(set(held)) > 1]
    strange = [
        (round_, phase)
        for (round_, phase), held in grid.held.items()
        if (saved := grid.saved.get(round_ - (phase == TRAIN))) is not None and held[0] != saved.tobytes()
    ]
    findings.check(
        len(grid.saved) == rounds and not apart and not strange,
        f"all {sum(map(len, grid.held.values()))} states of nodes equal the server's, bit for bit",
        f"{len(grid.saved)} of {rounds} saved; nodes apart: {apart[:3]}; not the server's: {strange[:3]}",
    )


def _check_means(grid: WatchedGrid, rounds: int, layout: AdapterLayout, findings: Findings) -> None:
    worst = 0.0
    for round_ in range(2, rounds + 1):
        before = grid.saved[round_ - 1].astype(np.float64)
        answers = grid.uploads[round_]
        updates = [decode_vector(payload, layout)[1].astype(np.float64) for _, payload in answers]
        step = np.average(updates, axis=0, weights=[w for w, _ in answers]) if answers else 0.0
        worst = max(worst, float(np.abs(grid.saved[round_] - (before + step)).max() / np.abs(before).max()))
    counts = [len(grid.uploads[round_]) for round_ in range(1, rounds + 1)]
    findings.check(
        worst < TOLERANCE,
        f"each round is the float64 mean of its {min(counts)} to {max(counts)} answers to {worst:.0e}",
        f"a round is {worst:.1e} off the mean of its answers",
    )
