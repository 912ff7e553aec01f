"""What the documentation's Python blocks take as given, page by page: real objects, small."""

from collections.abc import Callable
from pathlib import Path

import torch
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from shelf import Shelf

from fedkron.adapters import AdapterBank
from fedkron.base import load_base
from fedkron.exchange import load_adapter
from fedkron.flower import CompressedGrid, MeteredGrid, compressed_exchange
from fedkron.rundir import ADAPTER
from simulations.in_process import InProcessGrid

Names = dict[str, object]


def of_readme(_: Shelf) -> Names:
    """Somebody's Flower app: a strategy, arrays, and a grid with nodes on it."""
    nodes = ClientApp(mods=[compressed_exchange])

    @nodes.train()
    def train(message: Message, _: Context) -> Message:
        arrays = {name: Array(array.numpy() + 1) for name, array in message.content["arrays"].items()}
        content = {"arrays": ArrayRecord(arrays), "metrics": MetricRecord({"num-examples": 1})}
        return Message(RecordDict(content), reply_to=message)

    return {
        "ClientApp": ClientApp,
        "compressed_exchange": compressed_exchange,
        "CompressedGrid": CompressedGrid,
        "MeteredGrid": MeteredGrid,
        "strategy": FedAvg(fraction_evaluate=0.0),
        "grid": InProcessGrid(nodes, 2, {}),
        "initial_arrays": ArrayRecord({"weight": Array(torch.zeros(8, 4).numpy())}),
    }


def of_adapters(shelf: Shelf) -> Names:
    """A base, adapters for it, and a batch of three texts."""
    model = load_base(str(shelf.encoder)).backbone
    adapter = load_adapter(shelf.finished / ADAPTER)
    ids = torch.arange(12).view(3, 4)
    return {
        "AdapterBank": AdapterBank,
        "model": model,
        "adapter": adapter,
        "other": adapter,
        "batch": {"input_ids": ids, "attention_mask": torch.ones_like(ids)},
    }


def of_edge(_: Shelf) -> Names:
    return {"texts": ["who has the rose", "the sky is near"], "Path": Path}


GIVEN: dict[str, Callable[[Shelf], Names]] = {
    "README.md": of_readme,
    "docs/adapters.md": of_adapters,
    "docs/edge.md": of_edge,
}
