"""Flower's own strategies, unchanged, on the seam: the independent truth is the same strategy without it."""

import gc
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from flwr.app import Context, Message
from flwr.clientapp.mod import LocalDpMod, adaptiveclipping_mod, fixedclipping_mod
from flwr.serverapp import Grid
from flwr.serverapp.strategy import (
    Bulyan,
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedYogi,
    Krum,
    MultiKrum,
    QFedAvg,
    Strategy,
)
from seam_cases import State, initial, pull, record, state_of, target_of, third_party_app

from fedkron.flower import CompressedGrid, compressed_exchange
from fedkron.flower.wire import PAYLOAD
from fedkron.layout import AdapterLayout, ModuleLayout, TensorLayout
from fedkron.ledger import Transfer
from simulations.in_process import InProcessGrid

NODES, ROUNDS = 8, 4
ILL_NODE, ILL_ROUND = 7, 2  # without it, even Krum ends elsewhere

Mod = Callable[[Message, Context, Callable[[Message, Context], Message]], Message]
Learner = Callable[[State, int], State]


def proximal(message: Message, context: Context, call_next: Callable) -> Message:
    """The minimum of ½|x - trained|² + ½μ|x - received|², with the μ that FedProx sends."""
    mu = np.float32(message.content["config"]["proximal-mu"])
    received = state_of(message.content["arrays"])
    reply = call_next(message, context)
    trained = state_of(reply.content["arrays"])
    reply.content["arrays"] = record({n: (trained[n] + mu * received[n]) / (1 + mu) for n in trained})
    return reply


def train_loss(message: Message, context: Context, call_next: Callable) -> Message:
    """The metric that QFedAvg asks for."""
    received, target = (
        state_of(message.content["arrays"]),
        target_of(int(context.node_config["partition-id"])),
    )
    reply = call_next(message, context)
    reply.content["metrics"]["train_loss"] = float(np.mean((received["weight"] - target["weight"]) ** 2))
    return reply


@dataclass(frozen=True)
class Case:
    """A strategy, and the mods that its clients need."""

    strategy: Callable[[], Strategy]
    mods: tuple[Mod, ...] = ()


# Around whatever FedAvg they are given. All noise is from numpy's global generator.
PRIVATE: dict[str, Callable[[Strategy], Strategy]] = {
    "client-side fixed clipping": lambda inner: DifferentialPrivacyClientSideFixedClipping(
        inner, 0.1, 2.0, NODES
    ),
    "server-side fixed clipping": lambda inner: DifferentialPrivacyServerSideFixedClipping(
        inner, 0.1, 2.0, NODES
    ),
    "client-side adaptive clipping": lambda inner: DifferentialPrivacyClientSideAdaptiveClipping(
        inner, 0.1, NODES, initial_clipping_norm=20.0
    ),
    "server-side adaptive clipping": lambda inner: DifferentialPrivacyServerSideAdaptiveClipping(
        inner, 0.1, NODES, initial_clipping_norm=20.0
    ),
}
CLIPPING_MODS: dict[str, tuple[Mod, ...]] = {
    "client-side fixed clipping": (fixedclipping_mod,),
    "client-side adaptive clipping": (adaptiveclipping_mod,),
}


def private(name: str, inner: Callable[[], Strategy] = FedAvg) -> Case:
    return Case(lambda: PRIVATE[name](inner()), CLIPPING_MODS.get(name, ()))


CASES: dict[str, Case] = {
    "FedAvg": Case(FedAvg),
    "FedAvgM": Case(lambda: FedAvgM(server_learning_rate=0.7, server_momentum=0.5)),
    "FedAdam": Case(lambda: FedAdam(eta=0.1, tau=0.1)),
    "FedYogi": Case(lambda: FedYogi(eta=0.1, tau=0.1)),
    "FedAdagrad": Case(lambda: FedAdagrad(eta=0.1, tau=0.1)),
    "FedProx": Case(lambda: FedProx(proximal_mu=0.5), (proximal,)),
    "FedMedian": Case(FedMedian),
    "FedTrimmedAvg": Case(lambda: FedTrimmedAvg(beta=0.2)),
    "Krum": Case(lambda: Krum(num_malicious_nodes=1)),
    "MultiKrum": Case(lambda: MultiKrum(num_malicious_nodes=1, num_nodes_to_select=4)),
    "Bulyan": Case(lambda: Bulyan(num_malicious_nodes=1)),  # at least 4 · 1 + 3 replies
    "QFedAvg": Case(lambda: QFedAvg(client_learning_rate=50.0, q=0.1), (train_loss,)),
    **{name: private(name) for name in PRIVATE},
    "local differential privacy": Case(FedAvg, (LocalDpMod(2.0, 0.001, 1.0, 1e-5),)),
}


def run(case: Case, grid: Grid, state: State) -> State:
    # Flower draws the order of the nodes from the one, noise from the other.
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    return state_of(case.strategy().start(grid, record(state), num_rounds=ROUNDS).arrays)


def bare(case: Case, *outer: Mod, learn: Learner = pull) -> InProcessGrid:
    return InProcessGrid(third_party_app(outer, train_mods=case.mods, learn=learn), NODES, {})


def seam(
    case: Case,
    *,
    inner: Sequence[Mod] = (),
    outer: Sequence[Mod] = (),
    learn: Learner = pull,
    layout: AdapterLayout | None = None,
    codec: str = "fp32",
) -> CompressedGrid:
    mods = [*outer, compressed_exchange]
    app = third_party_app(mods, train_mods=[*case.mods, *inner], learn=learn)
    return CompressedGrid(InProcessGrid(app, NODES, {}), layout=layout, upload=codec, broadcast=codec)


def trained(grid: CompressedGrid) -> list[Transfer]:
    """What the nodes sent after training."""
    return [t for t in grid.ledger.transfers if (t.phase, t.direction) == ("train", "up")]


def distance(a: State, b: State) -> float:
    assert a.keys() == b.keys()
    return float(np.sqrt(sum(np.sum((a[name] - b[name]) ** 2) for name in a)))


@pytest.fixture(autouse=True)
def small_heap() -> Iterator[None]:
    # Bulyan and QFedAvg collect garbage for every reply: this saves them walking through all of torch.
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize("name", CASES)
def test_strategy_gives_on_the_lossless_seam_what_it_gives_without_it(name: str) -> None:
    case = CASES[name]
    plain, seen = run(case, bare(case), initial()), run(case, seam(case), initial())
    assert list(seen) == list(plain)
    for array, values in plain.items():
        np.testing.assert_allclose(seen[array], values, rtol=1e-5, atol=1e-5)
    assert distance(plain, initial()) > 1


def pull_much_the_same_way(received: State, partition: int) -> State:
    """Half of the way to a target near those of others, so that it matters little which nodes are picked."""
    common, own = target_of(50), target_of(partition)
    targets = {name: common[name] + np.float32(0.1) * own[name] for name in own}
    return {name: values + np.float32(0.5) * (targets[name] - values) for name, values in received.items()}


@pytest.mark.parametrize("name", CASES)
def test_strategy_ends_near_the_same_arrays_on_two_bits_a_number(name: str) -> None:
    case = CASES[name]
    grid = seam(case, codec="ecsq", learn=pull_much_the_same_way)
    plain = run(case, bare(case, learn=pull_much_the_same_way), initial())
    seen = run(case, grid, initial())
    raw = 4 * sum(values.size for values in plain.values())
    uploads = trained(grid)
    # Nothing was refused or sent as it was.
    assert len(uploads) == ROUNDS * NODES
    assert all(0 < transfer.payload_bytes < raw / 10 for transfer in uploads)
    assert distance(seen, plain) < 0.2 * distance(plain, initial())


# ------------------------------------------------------------------ a node that sends garbage


class NodeError(Exception):
    """Raised by the ill node of the federation without the seam: to Flower, that node has failed."""


def is_ill(message: Message, context: Context) -> bool:
    """Whether it is the ill node's turn; in the other rounds it is as good as any."""
    return (
        message.metadata.message_type == "train"
        and context.node_config["partition-id"] == ILL_NODE
        and message.content["config"]["server-round"] == ILL_ROUND
    )


def raising(message: Message, context: Context, call_next: Callable) -> Message:
    ill = is_ill(message, context)
    reply = call_next(message, context)
    if ill:  # after its mods have drawn their noise
        raise NodeError
    return reply


def training_to_nan(message: Message, context: Context, call_next: Callable) -> Message:
    ill = is_ill(message, context)
    reply = call_next(message, context)
    if ill:
        trained = state_of(reply.content["arrays"])
        reply.content["arrays"] = record({name: values * np.nan for name, values in trained.items()})
    return reply


def sending_garbage(message: Message, context: Context, call_next: Callable) -> Message:
    ill = is_ill(message, context)
    reply = call_next(message, context)
    if ill:
        blob = reply.content["arrays"][PAYLOAD]
        reply.content["arrays"][PAYLOAD] = random.Random(0).randbytes(len(blob))
    return reply


@pytest.mark.parametrize("name", CASES)
def test_strategy_takes_garbage_from_a_node_for_a_failure_of_that_node(name: str) -> None:
    # What a strategy does then is its own affair: FedAvg goes on with the others, the four wrappers
    # for differential privacy skip the round. So the truth is Flower with a node that raises.
    case = CASES[name]
    expected = run(case, bare(case, raising), initial())
    for grid in (seam(case, inner=(training_to_nan,)), seam(case, outer=(sending_garbage,))):
        seen = run(case, grid, initial())
        for array, values in expected.items():
            np.testing.assert_allclose(seen[array], values, rtol=1e-5, atol=1e-5)
    assert distance(expected, run(case, bare(case), initial())) > 1e-3


# ------------------------------------------------------------------ adapters under differential privacy

ADAPTER = AdapterLayout(
    "a base",
    (
        ModuleLayout(
            "layer.query",
            "kron_lora",
            0.75,
            (48, 28),
            (TensorLayout("A", (3, 2)), TensorLayout("B1", (16, 5)), TensorLayout("B2", (5, 14))),
        ),
    ),
    (TensorLayout("head.weight", (4, 28)),),
)


def random_adapter(seed: int) -> State:
    rng = np.random.default_rng(seed)
    return {t.name: rng.standard_normal(t.shape).astype(np.float32) for t in ADAPTER.tensors}


def learn_adapter(received: State, partition: int) -> State:
    target = random_adapter(partition)
    return {name: values + np.float32(0.5) * (target[name] - values) for name, values in received.items()}


@pytest.mark.parametrize("name", PRIVATE)
def test_adapters_are_trained_under_differential_privacy(name: str) -> None:
    case = private(name, lambda: FedAvg(fraction_evaluate=0.0))
    start = random_adapter(99)
    plain = run(case, bare(case, learn=learn_adapter), start)
    seen = run(case, seam(case, learn=learn_adapter, layout=ADAPTER), start)
    for tensor, values in plain.items():
        np.testing.assert_allclose(seen[tensor], values, rtol=1e-5, atol=1e-5)
    assert distance(plain, start) > 1
    small = seam(case, learn=learn_adapter, layout=ADAPTER, codec="ecsq")
    assert distance(run(case, small, start), plain) < 0.2 * distance(plain, start)
    assert len(trained(small)) == ROUNDS * NODES
    for transfer in trained(small):
        assert 0 < transfer.factor_bytes < 4 * sum(t.size for t in ADAPTER.sections.factors) / 8
        assert 0 < transfer.head_bytes < 4 * sum(t.size for t in ADAPTER.dense) / 8
