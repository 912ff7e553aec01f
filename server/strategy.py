"""From the settings of a run to the strategy that runs it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from flwr.app import Message
from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedProx, FedYogi

from fedkron.flower import FedKron, RoundReport
from fedkron.flower.clustered import clustered
from fedkron.flower.global_adapter import GlobalAdapter, MakeAdapter
from fedkron.flower.one_for_all import one_for_all
from fedkron.flower.per_size import PerSize
from fedkron.flower.per_task import PerTask
from fedkron.flower.uploads import Upload
from fedkron.layout import AdapterLayout
from fedkron.settings import CLUSTERS, OWN_SIZES, TASK_GROUPS, GroupSettings, ServerSettings, Settings

USUAL_STEP = 0.01
"""Server learning rate of the adaptive optimizers: what factors move in a round is of that size."""

Choice = dict[str, object]
"""How clients are chosen: arguments that all of Flower's strategies have."""


def strategy_of(
    settings: Settings,
    layout: AdapterLayout,
    nodes: int,
    on_round: Callable[[RoundReport, GlobalAdapter], None],
    uploads: Callable[[Message], Mapping[str, Upload]],
) -> FedKron:
    """The strategy of a run with so many nodes. Raises what `FedKron` raises."""
    # A run goes on without nodes that are gone, as long as it would go on if they failed.
    needed = max(1, math.ceil((1 - settings.max_failure_fraction) * nodes))
    choice: Choice = {
        "fraction_train": settings.fraction_train,
        "fraction_evaluate": settings.fraction_evaluate,
        "min_train_nodes": 1,
        "min_evaluate_nodes": 1,
        "min_available_nodes": needed,
    }
    return FedKron(
        layout,
        aggregation=settings.aggregation,
        adapters=_adapters(settings.adapter.sizes, settings.groups),
        optimizer=_OPTIMIZERS[settings.server.strategy](settings.server, choice),
        max_failure_fraction=settings.max_failure_fraction,
        on_round=on_round,
        uploads=uploads,
        norm_limit=settings.admission.norm_limit,
        seed=settings.seed,
        **choice,  # type: ignore[arg-type]
    )


def _adapters(sizes: str, groups: GroupSettings) -> MakeAdapter:
    if sizes == OWN_SIZES:
        return PerSize
    if groups.by == TASK_GROUPS:
        return PerTask
    if groups.by == CLUSTERS:
        return clustered(groups.clusters, groups.warm_up)
    return one_for_all


def _fedavgm(server: ServerSettings, choice: Choice) -> FedAvg:
    return FedAvgM(**choice, server_learning_rate=server.learning_rate or 1.0, server_momentum=0.9)  # type: ignore[arg-type]


def _adaptive(kind: type[FedAdagrad | FedAdam | FedYogi]) -> Callable[[ServerSettings, Choice], FedAvg]:
    return lambda server, choice: kind(**choice, eta=server.learning_rate or USUAL_STEP)  # type: ignore[arg-type]


_OPTIMIZERS: dict[str, Callable[[ServerSettings, Choice], FedAvg | None]] = {
    "fedavg": lambda server, choice: None,  # noqa: ARG005
    "fedprox": lambda server, choice: FedProx(**choice, proximal_mu=server.proximal_mu),  # type: ignore[arg-type]
    "fedavgm": _fedavgm,
    "fedadagrad": _adaptive(FedAdagrad),
    "fedadam": _adaptive(FedAdam),
    "fedyogi": _adaptive(FedYogi),
}
