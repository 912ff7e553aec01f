"""Payload, message and socket reconciled: a real SuperLink and two SuperNodes, each behind its own meter.

The app sends the same arrays twice, in plain Flower and compressed, and is silent for a moment between.
"""

import json
import re
import socket
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from deployment_cases import Deployment, deployment, until

from fedkron.ledger import Transfer, read_ledger
from fedkron.socketlog import Crossing, read_socket_log, socket_totals

NODES, ROUNDS = 2, 2
PHASES = ("plain", "compressed")
DIRECTIONS = ("down", "up")

APP = """
import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

from fedkron.flower import CompressedGrid, compressed_exchange
from fedkron.flower.metered_grid import MeteredGrid
from fedkron.layout import AdapterLayout, ModuleLayout, TensorLayout
from fedkron.ledger import Ledger

client = ClientApp(mods=[compressed_exchange])
server = ServerApp()


def noise(shape, *seed):
    # Flower sends equal contents once: nothing here is equal.
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


@client.train()
def train(message, context):
    seed = (context.node_config["partition-id"] + 1, message.content["config"]["server-round"])
    arrays = {
        name: Array(array.numpy() + noise(array.shape, *seed))
        for name, array in message.content["arrays"].items()
    }
    metrics = MetricRecord({"num-examples": 1})
    return Message(RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics}), reply_to=message)


@server.main()
def main(grid, context):
    out = Path(context.run_config["out"])
    state = {"layer.A": noise((1000, 800), 0), "head.weight": noise((200, 800), 1)}
    arrays = ArrayRecord({name: Array(values) for name, values in state.items()})
    module = ModuleLayout("layer", "lora", 1.0, (1000, 800), (TensorLayout("A", (1000, 800)),))
    layout = AdapterLayout("", (module,), (TensorLayout("head.weight", (200, 800)),))

    def federate(grid):
        FedAvg(fraction_evaluate=0.0).start(grid, arrays, num_rounds=context.run_config["rounds"])

    federate(MeteredGrid(grid, out / "plain.jsonl"))
    time.sleep(context.run_config["silence"])
    (out / "silence-ended").write_text(str(time.time()))
    ledger = Ledger(out / "compressed.jsonl")
    federate(CompressedGrid(grid, layout=layout, broadcast="int8", upload="int4", ledger=ledger))
    (out / "done").touch()
"""

PYPROJECT = f"""
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "socket-bytes"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "nobody"

[tool.flwr.app.components]
serverapp = "app:server"
clientapp = "app:client"

[tool.flwr.app.config]
out = ""
rounds = {ROUNDS}
silence = 4.0
"""

REQUEST_UP, REQUEST_DOWN = 1300, 450
"""Largest mean cost of one request, contents not counted, in bytes.

A SuperNode posts protobuf over HTTP/1.1. A poll that brings nothing was measured at 850 to 880 bytes up
(headers with the node's key, a time and a signature) and 128 down; naming an object adds 100 up and 60 down,
the tree of a message's objects up to 1 kB, once in each direction for each message.
"""

MESSAGE_REQUESTS = 8 + 2
"""A message is one request, each of its objects (message, records, arrays, chunks) one, its receipt one."""

POLL_SECONDS = 3
START_REQUESTS = 8
"""Registration, activation, the run, its app, heartbeats."""

BUNDLE = 8_000
"""The app itself travels down once: two small files, zipped, with a manifest."""


@dataclass(frozen=True)
class Evidence:
    """What the app, the meters and Flower have written down. Nodes by id, phases by name."""

    ledgers: dict[str, list[Transfer]]
    sockets: dict[str, list[Crossing]]
    counted_by_flower: dict[str, int]
    silence_ended: float
    seconds: float

    def messages(self, phase: str, node: str, direction: str) -> list[Transfer]:
        """The ledger's entries for one node and direction."""
        return [t for t in self.ledgers[phase] if (t.node, t.direction) == (node, direction)]

    def carried(self, phase: str, node: str, direction: str) -> int:
        """Bytes on the node's socket. A line of the log ends at most a second after its bytes came."""
        plain = phase == "plain"
        lines = [c for c in self.sockets[node] if (c.end < self.silence_ended) == plain]
        return getattr(socket_totals(lines), direction)


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    folder = tmp_path_factory.mktemp("deployment")
    app = folder / "app"
    app.mkdir()
    (app / "app.py").write_text(APP)
    (app / "pyproject.toml").write_text(PYPROJECT)
    (folder / "run.toml").write_text(f'out = "{folder}"\n')
    link, *nodes = free_ports(1 + NODES)
    began = time.monotonic()
    with deployment(folder, link) as running:
        until(lambda: listens(link), "the SuperLink")
        meters = [start_meter(running, link, number) for number in range(NODES)]
        for number, (port, via) in enumerate(zip(nodes, meters, strict=True)):
            running.add_node(f"node{number}", via=via, port=port, config=f"partition-id={number}")
        traffic = running.complete(app, folder / "run.toml", folder / "done")
    return Evidence(
        {phase: read_ledger(folder / f"{phase}.jsonl") for phase in PHASES},
        {node_id(folder, n): read_socket_log(folder / f"sockets{n}.jsonl") for n in range(NODES)},
        {"down": traffic["outbound-bytes"], "up": traffic["inbound-bytes"]},
        float((folder / "silence-ended").read_text()),
        time.monotonic() - began,
    )


def start_meter(running: Deployment, link: int, number: int) -> int:
    """Put a meter before the SuperLink; returns the port that it chose."""
    log = running.folder / f"sockets{number}.jsonl"
    command = (sys.executable, "-m", "fedkron.cli", "meter", "--listen", "127.0.0.1:0")
    running.start(f"meter{number}.log", *command, "--to", f"127.0.0.1:{link}", "--output", log)
    until(lambda: log.exists() and log.read_text().endswith("\n"), "the meter")
    return int(json.loads(log.read_text())["listen"].rpartition(":")[2])


def node_id(folder: Path, number: int) -> str:
    return re.search(r"SuperNode ID: (\d+)", (folder / f"node{number}.log").read_text())[1]


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for candidate in sockets:
            candidate.bind(("127.0.0.1", 0))
        return [candidate.getsockname()[1] for candidate in sockets]


def around(evidence: Evidence, direction: str) -> int:
    """At most so many bytes stand around the messages of one node, phase and direction."""
    polls = evidence.seconds / POLL_SECONDS
    requests = 2 * ROUNDS * MESSAGE_REQUESTS + polls + START_REQUESTS
    return int(requests * REQUEST_UP) if direction == "up" else int(requests * REQUEST_DOWN) + BUNDLE


def test_the_ledger_has_each_message_once_per_node_round_and_direction(evidence: Evidence) -> None:
    nodes = evidence.sockets.keys()
    assert len(nodes) == NODES
    for transfers in evidence.ledgers.values():
        found = sorted((t.node, t.round, t.direction) for t in transfers)
        assert found == sorted((n, r + 1, d) for n in nodes for r in range(ROUNDS) for d in DIRECTIONS)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_socket_carried_the_messages_and_around_them_what_is_known(
    evidence: Evidence, phase: str, direction: str
) -> None:
    for node in evidence.sockets:
        messages = [transfer.message_bytes for transfer in evidence.messages(phase, node, direction)]
        # Else a message counted twice, or not at all, could hide among the polls.
        assert around(evidence, direction) < min(messages) / 2
        over = evidence.carried(phase, node, direction) - sum(messages)
        assert 0 <= over <= around(evidence, direction), (node, over)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_flowers_own_count_of_the_run_lies_between_messages_and_sockets(
    evidence: Evidence, direction: str
) -> None:
    # What `flwr ls` shows: requests and answers that belong to the run, without their HTTP headers.
    transfers = [t for transfers in evidence.ledgers.values() for t in transfers if t.direction == direction]
    messages = sum(transfer.message_bytes for transfer in transfers)
    sockets = sum(evidence.carried(phase, node, direction) for phase in PHASES for node in evidence.sockets)
    assert messages <= evidence.counted_by_flower[direction] <= sockets


def test_factors_and_head_are_counted_apart_and_the_envelope_is_small(evidence: Evidence) -> None:
    numpy_header = 128
    for transfer in evidence.ledgers["plain"]:
        assert transfer.factor_bytes == 4 * 1000 * 800 + numpy_header
        assert transfer.head_bytes == 4 * 200 * 800 + numpy_header
        assert transfer.header_bytes == 0
    for transfer in evidence.ledgers["compressed"]:
        assert transfer.factor_bytes / transfer.head_bytes == pytest.approx(5, rel=0.01)
        assert 0 < transfer.header_bytes < 2000
    for transfer in (t for transfers in evidence.ledgers.values() for t in transfers):
        assert 0 < transfer.message_bytes - transfer.payload_bytes < 2000


def test_what_compression_saves_is_saved_on_the_socket(evidence: Evidence) -> None:
    for node in evidence.sockets:
        for direction, at_least in (("down", 3.7), ("up", 6)):
            plain, small = (evidence.carried(phase, node, direction) for phase in PHASES)
            assert plain / small > at_least
