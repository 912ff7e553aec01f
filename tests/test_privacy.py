"""The budget against closed forms, and against a numerical accountant that composes the releases itself."""

import math

import pytest
from dp_accounting import ComposedDpEvent, GaussianDpEvent, NeighboringRelation, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant
from hypothesis import given
from hypothesis import strategies as st

from fedkron.privacy import Budget, epsilon

DELTA = 1e-5


def normal_cdf(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))


def delta_of(noise: float, eps: float) -> float:
    """Balle & Wang 2018, theorem 8, for a release of sensitivity 1."""
    a, b = 1 / (2 * noise), eps * noise
    return normal_cdf(a - b) - math.exp(eps) * normal_cdf(-a - b)


@given(st.floats(0.3, 30), st.floats(1e-7, 1e-2))
def test_one_release_is_the_analytic_gaussian_mechanism(noise: float, delta: float) -> None:
    found = epsilon([noise], delta)
    assert found is not None
    if found > 0:
        assert delta_of(noise, found) == pytest.approx(delta, rel=1e-4)
    else:
        assert delta_of(noise, 0) <= delta


def test_releases_together_cost_what_a_numerical_accountant_says() -> None:
    # It convolves privacy loss distributions, rounded to the safe side.
    for multipliers, rounds in (((1.0,), 8), ((4.0, 20.0), 5), ((0.5,), 1)):
        accountant = PLDAccountant(NeighboringRelation.REPLACE_SPECIAL)
        accountant.compose(SelfComposedDpEvent(ComposedDpEvent([*map(GaussianDpEvent, multipliers)]), rounds))
        assert epsilon(multipliers * rounds, DELTA) == pytest.approx(accountant.get_epsilon(DELTA), rel=1e-3)


@given(st.floats(0.5, 20), st.integers(1, 200))
def test_rounds_are_one_release_with_the_noise_over_their_root(noise: float, rounds: int) -> None:
    together, once = epsilon([noise] * rounds, DELTA), epsilon([noise / math.sqrt(rounds)], DELTA)
    assert together == pytest.approx(once, rel=1e-6, abs=1e-9)


def test_a_node_is_charged_for_the_rounds_in_which_it_is_asked() -> None:
    budget = Budget([2.0], DELTA)
    asked = ([1, 2], [2, 3], [1, 3], [4], [2])
    spent = [budget.charge(nodes, 0.5) for nodes in asked]
    assert [s.rounds for s in spent] == [1, 2, 2, 2, 3]
    assert [s.epsilon for s in spent] == [epsilon([2.0] * s.rounds, DELTA) for s in spent]
    assert {(s.delta, s.clipping_norm) for s in spent} == {(DELTA, 0.5)}


def test_nothing_is_guaranteed_without_noise_and_nothing_spent_without_a_round() -> None:
    assert Budget([0.0], DELTA).charge([1], 1.0).epsilon is None
    assert Budget([1.0, 0.0], DELTA).charge([1], 1.0).epsilon is None
    assert Budget([1.0], DELTA).charge([], 1.0).epsilon == 0


def test_a_budget_goes_on_after_a_fault_and_charges_what_may_have_been_released() -> None:
    budget, other = Budget([2.0], 1e-5), Budget([2.0], 1e-5)
    for nodes in ([1, 2], [1], [1, 3]):
        budget.charge(nodes, 1.0)
    other.restore(budget.snapshot(), {1: 11, 2: 12})  # node 3 is gone: what it has spent stays spent
    spent = other.charge([11], 1.0)
    assert spent.rounds == 3 + 1 + 1
    assert spent.epsilon == epsilon([2.0] * 5, 1e-5)
    assert other.charge([3], 1.0).rounds == 5
    assert other.snapshot() == {"11": 5, "12": 2, "3": 3}
