"""How fedkron plugs into Flower: a client mod, a Grid, and a strategy."""

from fedkron.flower.admission import ORIGIN
from fedkron.flower.client_mod import compressed_exchange, explained_errors
from fedkron.flower.grid import CompressedGrid
from fedkron.flower.metered_grid import MeteredGrid
from fedkron.flower.round_report import RoundReport, TaskReport
from fedkron.flower.strategy import FedKron
from fedkron.flower.wire import EXPLAINED_ERROR, REJECTED_UPLOAD

__all__ = [
    "EXPLAINED_ERROR",
    "ORIGIN",
    "REJECTED_UPLOAD",
    "CompressedGrid",
    "FedKron",
    "MeteredGrid",
    "RoundReport",
    "TaskReport",
    "compressed_exchange",
    "explained_errors",
]
