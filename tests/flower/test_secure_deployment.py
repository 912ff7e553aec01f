"""Secure aggregation in a real deployment: every message of a node is answered by a process of its own."""

import json
import socket
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from deployment_cases import deployment, until

from fedkron.ledger import read_ledger
from fedkron.secure.keys import new_identity

NODES = 3

APP = """
import json
import os
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

from fedkron.flower import CompressedGrid, compressed_exchange, explained_errors
from fedkron.flower.secure_client import answer_secure_queries, secure_exchange
from fedkron.flower.secure_grid import SecureGrid
from fedkron.ledger import Ledger


def noted(message, context, call_next):
    with Path(context.node_config["processes"]).open("a") as file:
        file.write(f"{os.getpid()}\\n")
    return call_next(message, context)


client = ClientApp(mods=[explained_errors, noted, compressed_exchange, secure_exchange])
answer_secure_queries(client)
server = ServerApp()


@client.train()
def train(message, context):
    move = 2 * context.node_config["partition-id"] - 1
    moved = message.content["arrays"]["w"].numpy() + np.float32(move)
    content = {"arrays": ArrayRecord({"w": Array(moved)}), "metrics": MetricRecord({"num-examples": 1})}
    return Message(RecordDict(content), reply_to=message)


@server.main()
def main(grid, context):
    out = Path(context.run_config["out"])
    start = ArrayRecord({"w": Array(np.linspace(-1, 1, 50, dtype=np.float32))})
    compressed = CompressedGrid(grid, broadcast="fp32", ledger=Ledger(out / "ledger.jsonl"))
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=3, min_available_nodes=3)
    federated = SecureGrid(compressed, levels=255, magnitude=lambda _: 1.0)
    result = strategy.start(federated, start, num_rounds=1)
    (out / "result.json").write_text(json.dumps(result.arrays["w"].numpy().tolist()))
"""

PYPROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "secure-sum"
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
"""


def test_nodes_that_know_each_other_agree_through_a_superlink_and_their_mean_comes_out(
    tmp_path: Path,
) -> None:
    app = tmp_path / "app"
    app.mkdir()
    (app / "app.py").write_text(APP)
    (app / "pyproject.toml").write_text(PYPROJECT)
    (tmp_path / "run.toml").write_text(f'out = "{tmp_path}"\n')
    keys = [new_identity() for _ in range(NODES)]
    public = [key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode() for key in keys]
    (tmp_path / "peers").write_text("\n".join(public))
    link, *ports = free_ports(1 + NODES)
    with deployment(tmp_path, link) as running:
        until(lambda: listens(link), "the SuperLink")
        for number, (key, port) in enumerate(zip(keys, ports, strict=True)):
            identity = tmp_path / f"identity{number}"
            identity.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
            identity.chmod(0o600)
            config = (
                f'partition-id={number} processes="{tmp_path}/processes{number}" secure-required=true '
                f'secure-identity="{identity}" secure-peers="{tmp_path}/peers"'
            )
            running.add_node(f"node{number}", via=link, port=port, config=config)
        running.complete(app, tmp_path / "run.toml", tmp_path / "result.json")
    # The updates are -1, 1 and 3: their mean is 1.
    found = json.loads((tmp_path / "result.json").read_text())
    assert np.allclose(found, np.linspace(0, 2, 50), atol=0.03)
    for number in range(NODES):
        processes = (tmp_path / f"processes{number}").read_text().split()
        assert len(processes) == len(set(processes)) == 4
    sent = [(t.phase, t.direction) for t in read_ledger(tmp_path / "ledger.jsonl")]
    stages = ("query.secure_keys", "query.secure_shares", "train", "query.secure_unmask")
    expected = {(stage, direction): NODES for stage in stages for direction in ("down", "up")}
    assert {entry: sent.count(entry) for entry in sent} == expected


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for candidate in sockets:
            candidate.bind(("127.0.0.1", 0))
        return [candidate.getsockname()[1] for candidate in sockets]
