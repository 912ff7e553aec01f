"""The norm limit, alone and where it stands: a node that sends too much is refused, and the round goes on."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from seam_cases import SHAPES, State, pull, record, third_party_app

from fedkron.compression import codec, encode
from fedkron.compression.accumulate import accept, decoded
from fedkron.errors import RunError
from fedkron.flower import FedKron, compressed_exchange
from fedkron.flower.admission import Origin
from fedkron.flower.global_adapter import Answer
from fedkron.flower.norm_limit import NormLimit
from fedkron.flower.unopened_grid import UnopenedGrid
from fedkron.flower.uploads import Packed
from fedkron.layout import AdapterLayout, TensorLayout
from simulations.in_process import InProcessGrid

LAYOUT = AdapterLayout("a base", (), (TensorLayout("weight", (4, 3)),))
ZEROS = {"weight": np.zeros((4, 3), np.float32)}


def answers(norms: list[float], *, first: int = 0) -> list[Answer]:
    return [
        Answer(Origin("task", i, first + i), {"arrays": Packed(b"", ZEROS, LAYOUT, 1, norm=norm)}, weight=1.0)
        for i, norm in enumerate(norms)
    ]


norms_of_a_round = st.lists(st.floats(0.01, 100), min_size=3, max_size=9)


@given(st.lists(norms_of_a_round, min_size=1, max_size=4), st.floats(10.5, 1e6))
def test_a_minority_is_refused_as_soon_as_it_is_beyond_all_others(
    history: list[list[float]], size: float
) -> None:
    limit = NormLimit(10)
    for norms in history:
        limit.refusals(answers(norms))
    honest = history[-1]
    liars = (len(honest) - 1) // 2
    largest = max(max(norms) for norms in history)
    found = limit.refusals(answers([*honest, *[size * largest] * liars]))
    assert set(range(len(honest), len(honest) + liars)) <= found.keys()


@given(norms_of_a_round, st.floats(0.001, 1000))
def test_nobody_is_refused_where_all_have_become_larger_or_smaller(norms: list[float], factor: float) -> None:
    limit = NormLimit(10)
    norms = [1 + norm / 100 for norm in norms]  # alike, as updates of one round are
    assert limit.refusals(answers(norms)) == {}
    assert limit.refusals(answers([factor * norm for norm in norms])) == {}


def test_what_was_refused_does_not_become_usual() -> None:
    limit = NormLimit(2)
    for _ in range(20):
        assert limit.refusals(answers([1.0, 1.0, 1.0, 2.5])).keys() == {3}
    assert "its norm is 2.5, the limit 2: admission.norm-limit = 2 times" in next(
        iter(limit.refusals(answers([1.0, 1.0, 1.0, 2.5])).values())
    )


def test_it_goes_on_where_its_snapshot_was_made_and_zero_admits_any() -> None:
    limit, other = NormLimit(2), NormLimit(2)
    limit.refusals(answers([1.0, 1.0, 1.0]))
    other.restore(limit.snapshot())
    for one in (limit, other):
        assert one.refusals(answers([1.0, 1.5, 9.0])).keys() == {2}
    assert NormLimit(0).refusals(answers([1.0, 1.0, 1e30])) == {}


@pytest.mark.parametrize("name", ["fp32", "int8", "int4", "ecsq", "sign"])
def test_norm_of_a_payload_is_that_of_what_it_decodes_to_or_a_bound(name: str) -> None:
    rng = np.random.default_rng(0)
    layout = AdapterLayout("a base", (), (TensorLayout("weight", (40, 30)), TensorLayout("bias", (7,))))
    update = {t.name: rng.standard_normal(t.shape, np.float32) for t in layout.tensors}
    payload = encode(update, layout, codec(name), round=1)
    accepted = accept(payload, layout)
    vector = np.zeros(layout.size, np.float32)
    accepted.add_to(vector, 1.0)
    truth = float(np.linalg.norm(vector.astype(np.float64)))
    assert accepted.norm == accept(payload, layout, decoded).norm
    if name.startswith("int"):
        assert truth <= accepted.norm * (1 + 1e-6)
        assert accepted.norm < 4 * truth
    else:
        assert math.isclose(accepted.norm, truth, rel_tol=1e-6)


def times(factor: float, liar: int) -> Callable[[State, int], State]:
    """One node sends so many times what it should."""

    def learn(received: State, partition: int) -> State:
        trained = pull(received, partition)
        if partition != liar:
            return trained
        return {
            name: values + np.float32(factor) * (trained[name] - values) for name, values in received.items()
        }

    return learn


def federate(factor: float, *, nodes: int = 5, limit: float = 10, allowed: float = 0.5) -> tuple:
    app = third_party_app([compressed_exchange], learn=times(factor, liar=1))
    seam = UnopenedGrid(InProcessGrid(app, nodes, {}), upload="fp32", broadcast="fp32")
    reports = []
    layout = AdapterLayout.of_arrays({name: np.zeros(s, np.float32) for name, s in SHAPES.items()})
    strategy = FedKron(
        layout,
        uploads=seam.uploads,
        norm_limit=limit,
        max_failure_fraction=allowed,
        on_round=lambda report, _: reports.append(report),
    )
    initial = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    result = strategy.start(seam, record(initial), num_rounds=2)
    return {name: array.numpy() for name, array in result.arrays.items()}, reports


def test_liar_is_refused_by_name_and_the_others_go_on_without_it() -> None:
    arrays, reports = federate(1000)
    assert [len(report.failures) for report in reports] == [1, 1]
    assert reports[0].failures[0].startswith("node 1001: upload refused: its norm is ")
    honest, _ = federate(1.0, limit=0)
    lied, _ = federate(1000, limit=0)
    assert max(np.abs(arrays[name] - honest[name]).max() for name in SHAPES) < 1
    assert np.abs(lied["weight"]).max() > 50


def test_refused_uploads_count_as_failures() -> None:
    with pytest.raises(RunError, match=r"1 of 5 clients failed in training, .*norm"):
        federate(1000, allowed=0.1)
