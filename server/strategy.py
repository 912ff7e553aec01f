"""From the settings of a run to the strategy that runs it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

from flwr.app import Message
from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedProx, FedYogi

from fedkron.aggregation import RobustRule
from fedkron.flower import FedKron, RoundReport
from fedkron.flower.central_privacy import CentralPrivacy, adaptive_clipping, fixed_clipping, private
from fedkron.flower.clustered import clustered
from fedkron.flower.global_adapter import GlobalAdapter, MakeAdapter
from fedkron.flower.local_privacy import multiplier
from fedkron.flower.one_for_all import one_for_all
from fedkron.flower.per_size import PerSize
from fedkron.flower.per_task import PerTask
from fedkron.flower.round_report import Verdict
from fedkron.flower.uploads import Upload
from fedkron.layout import AdapterLayout
from fedkron.privacy import Budget, Charges, LocalCharges
from fedkron.settings import (
    ADAPTIVE_CLIPPING,
    CENTRAL_PRIVACY,
    CLUSTERS,
    LOCAL_PRIVACY,
    OWN_SIZES,
    TASK_GROUPS,
    GroupSettings,
    PrivacySettings,
    ServerSettings,
    Settings,
)

USUAL_STEP = 0.01
"""Server learning rate of the adaptive optimizers: what factors move in a round is of that size."""

Choice = dict[str, object]
"""How clients are chosen: arguments that all of Flower's strategies have."""


def strategy_of(
    settings: Settings,
    layout: AdapterLayout,
    nodes: int,
    *,
    uploads: Callable[[Message], Mapping[str, Upload]],
    on_verdict: Callable[[Verdict], None],
    on_round: Callable[[RoundReport, GlobalAdapter], None],
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
    adapters, privacy = _private(settings)
    return FedKron(
        layout,
        aggregation=settings.aggregation,
        adapters=adapters,
        optimizer=_OPTIMIZERS[settings.server.strategy](settings.server, choice),
        max_failure_fraction=settings.max_failure_fraction,
        on_verdict=on_verdict,
        privacy=privacy,
        on_round=on_round,
        uploads=uploads,
        # A limit that depends on other nodes' updates tells of them; the private mean clips them all anyway.
        norm_limit=0 if settings.privacy.kind == CENTRAL_PRIVACY else settings.admission.norm_limit,
        seed=settings.seed,
        **choice,
    )


def _private(settings: Settings) -> tuple[MakeAdapter, Charges | None]:
    """The adapters of a run, and who says what a round costs the nodes."""
    privacy = settings.privacy
    if privacy.kind == CENTRAL_PRIVACY:
        central = _central(privacy)
        return private(central), central
    rule = RobustRule(settings.robust.rule, settings.robust.attackers)
    adapters = _adapters(settings.adapter.sizes, settings.groups, rule)
    if privacy.kind == LOCAL_PRIVACY:
        budget = Budget([multiplier(privacy.noise_multiplier)], privacy.delta)
        return adapters, LocalCharges(budget, privacy.clipping_norm)
    return adapters, None


def _central(privacy: PrivacySettings) -> CentralPrivacy:
    clipping = adaptive_clipping if privacy.clipping == ADAPTIVE_CLIPPING else fixed_clipping
    return clipping(privacy.clipping_norm, privacy.noise_multiplier, privacy.delta)


def _adapters(sizes: str, groups: GroupSettings, rule: RobustRule) -> MakeAdapter:
    if sizes == OWN_SIZES:
        return PerSize
    if groups.by == TASK_GROUPS:
        return partial(PerTask, rule=rule)
    if groups.by == CLUSTERS:
        return clustered(groups.clusters, groups.warm_up, rule)
    return partial(one_for_all, rule=rule)


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
