"""How fedkron plugs into Flower: a client mod, a Grid, and a strategy."""

from fedkron.flower.admission import ORIGIN
from fedkron.flower.client_mod import compressed_exchange
from fedkron.flower.grid import REJECTED_UPLOAD, CompressedGrid
from fedkron.flower.strategy import FedKron, RoundReport, TaskReport

__all__ = [
    "ORIGIN",
    "REJECTED_UPLOAD",
    "CompressedGrid",
    "FedKron",
    "RoundReport",
    "TaskReport",
    "compressed_exchange",
]
