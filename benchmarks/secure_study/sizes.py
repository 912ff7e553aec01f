"""How many bytes a masked update takes: by its packing, and in real Flower messages with all queries."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from fedkron.flower import CompressedGrid, compressed_exchange
from fedkron.flower.secure_client import answer_secure_queries, secure_exchange
from fedkron.flower.secure_grid import SecureGrid
from fedkron.layout import Vector
from fedkron.ledger import totals_by_round
from fedkron.secure.packing import packing
from simulations.in_process import InProcessGrid

NODES, LEVELS = (4, 8, 16, 32), (2, 3, 5, 15, 255)
FIXED_WIDTH = {2: "int4", 3: "int4", 5: "int4", 15: "int4", 255: "int8"}
"""The codec of fixed width that holds so many levels without masks."""

BITS = {"int4": 4.25, "int8": 8.25}
SECAGG_PLUS_BITS = 64
GOAL = 1.3

TENSORS = 100
ROUNDS = 2


@dataclass(frozen=True)
class Packed:
    """Bits a parameter takes, and how many times that of the codec of fixed width."""

    nodes: int
    levels: int
    bits: float
    codec: str
    times: float
    times_less_than_secagg_plus: float


@dataclass(frozen=True)
class Exchange:
    """Serialized Flower messages of a training round, in bytes per node, the last of two; no evaluation."""

    way: str
    nodes: int
    parameters: int
    up: float
    down: float
    messages_per_node: float

    @property
    def bytes_per_parameter(self) -> float:
        """Upload, with everything around it."""
        return self.up / self.parameters


def packed(nodes: int, levels: int) -> Packed:
    """What masked codes take for so many nodes."""
    bits, codec = packing(levels, nodes).bits, FIXED_WIDTH[levels]
    return Packed(nodes, levels, bits, codec, bits / BITS[codec], SECAGG_PLUS_BITS / bits)


def exchange(nodes: int, parameters: int, *, codec: str = "int4", levels: int = 0) -> Exchange:
    """Send an update of so many parameters through real messages: with a codec, or masked with `levels`."""
    grid = InProcessGrid(_app(), nodes, {})
    compressed = CompressedGrid(grid, upload=codec, broadcast="ecsq")
    federated = SecureGrid(compressed, levels=levels, magnitude=lambda _: 1e-3) if levels else compressed
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=1)
    zeros = np.zeros(parameters // TENSORS, np.float32)
    start = ArrayRecord({f"tensor{i:02}": Array(zeros) for i in range(TENSORS)})
    strategy.start(federated, start, ROUNDS)
    last = [t for t in compressed.ledger.transfers if t.round == ROUNDS]
    total = totals_by_round(compressed.ledger.transfers)[ROUNDS]
    way = f"masked, {levels} levels" if levels else codec
    return Exchange(
        way, nodes, parameters, total.message_up / nodes, total.message_down / nodes, len(last) / nodes
    )


def _app() -> ClientApp:
    app = ClientApp(mods=[compressed_exchange, secure_exchange])
    answer_secure_queries(app)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        rng = np.random.default_rng([context.node_id, _round(message)])
        arrays = ArrayRecord(
            {
                name: Array(array.numpy() + _update(array.numpy().size, rng))
                for name, array in message.content.array_records["arrays"].items()
            }
        )
        return Message(
            RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})}), reply_to=message
        )

    return app


def _round(message: Message) -> int:
    config: ConfigRecord = message.content.config_records["config"]
    return int(config["server-round"])  # type: ignore[arg-type]


def _update(size: int, rng: np.random.Generator) -> Vector:
    return rng.normal(0, 1e-3, size).astype(np.float32)
