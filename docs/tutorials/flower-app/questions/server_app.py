"""What runs on the server."""

from __future__ import annotations

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from fedkron.flower import MeteredGrid
from questions.task import Classifier

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Flower's own FedAvg, for as many rounds as the run config says."""
    grid = MeteredGrid(grid, str(context.run_config["ledger"]))  # counts bytes, changes nothing
    FedAvg().start(
        grid=grid,
        initial_arrays=ArrayRecord(Classifier().state_dict()),
        num_rounds=int(context.run_config["num-server-rounds"]),
    )
