import numpy as np
import pytest
from aggregation_cases import rearranged, relative_distance
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkron.aggregation.products import Products
from fedkron.aggregation.tucker import Tucker, TuckerSum, reduced

patient = settings(deadline=None, max_examples=60)  # a busy machine is not a failure
seeds = st.integers(0, 2**32 - 1)
sides = st.integers(1, 6)

WEIGHTS = st.floats(-3, 3).filter(lambda weight: weight == 0 or abs(weight) > 1e-6)

GRID, SIDES = (3, 2), (7, 5)


def random_products(rng: np.random.Generator, count: int, rank: int) -> Products:
    shapes = ((count, *GRID), (count, SIDES[0], rank), (count, rank, SIDES[1]))
    return Products(*(rng.standard_normal(shape).astype(np.float32) for shape in shapes))


def dense(products: Products) -> np.ndarray:
    A, B1, B2 = (factors.astype(np.float64) for factors in (products.A, products.B1, products.B2))
    zero = np.zeros((A.shape[1] * B1.shape[1], A.shape[2] * B2.shape[2]))
    return sum((np.kron(a, b @ c) for a, b, c in zip(A, B1, B2, strict=True)), zero)


def dense_tucker(tucker: Tucker) -> np.ndarray:
    """By definition: Σ_i left_i ⊗ (Q1 · core_i · Q2ᵀ)."""
    zero = np.zeros(tuple(np.multiply(tucker.grid, tucker.sides)))
    terms = (
        np.kron(a, tucker.Q1 @ core @ tucker.Q2.T) for a, core in zip(tucker.left, tucker.core, strict=True)
    )
    return sum(terms, zero)


def assert_orthonormal(tucker: Tucker) -> None:
    for basis in (tucker.left_columns, tucker.Q1, tucker.Q2):
        np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-12)


@patient
@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 4), WEIGHTS), min_size=1, max_size=6), seeds)
def test_a_sum_of_products_of_any_ranks_and_weights_is_the_dense_sum(
    parts: list[tuple[int, int, float]], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    products = [random_products(rng, count, rank) for count, rank, _ in parts]
    weights = [weight for _, _, weight in parts]
    at_once, in_batches = TuckerSum(GRID, SIDES, None), TuckerSum(GRID, SIDES, max(SIDES))
    for each, weight in zip(products, weights, strict=True):
        at_once.add(each, weight)
        in_batches.add(each, weight)
    expected = sum(weight * dense(each) for each, weight in zip(products, weights, strict=True))
    size = sum(
        abs(weight) * np.linalg.norm(dense(each)) for each, weight in zip(products, weights, strict=True)
    )
    for total in (at_once.total(), in_batches.total()):
        assert_orthonormal(total)
        assert np.linalg.norm(dense_tucker(total) - expected) <= 1e-11 * size
        assert total.norm == pytest.approx(np.linalg.norm(expected), rel=1e-9, abs=1e-11 * size)
    assert at_once.cut == in_batches.cut == 0


@pytest.mark.parametrize("max_rank", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("seed", range(4))
def test_what_is_cut_off_is_bounded_and_of_one_batch_known(seed: int, max_rank: int) -> None:
    rng = np.random.default_rng(seed)
    parts = [random_products(rng, 1, 2) for _ in range(12)]
    total, expected, cuts = TuckerSum(GRID, SIDES, max_rank), np.zeros((21, 10)), []
    for number, each in enumerate(parts):
        total.add(each, 1.0)
        expected += dense(each)
        lost = np.linalg.norm(dense_tucker(total.total()) - expected)
        cuts.append(total.cut)
        assert lost <= total.cut + 1e-12 * np.linalg.norm(expected)
        assert number > 0 or lost == pytest.approx(total.cut, abs=1e-9)
        assert max(total.total().core.shape[1:]) <= max_rank
    assert cuts == sorted(cuts)
    assert cuts[-1] > 0


def test_clients_that_move_in_one_subspace_are_summed_exactly_in_few_directions_however_many() -> None:
    rng = np.random.default_rng(1)
    subspace = random_products(rng, 1, 2)
    total, expected = TuckerSum(GRID, SIDES, 4), np.zeros((21, 10))
    for _ in range(50):
        turn = rng.standard_normal((2, 2)).astype(np.float32)
        A = rng.standard_normal((1, *GRID)).astype(np.float32)
        each = Products(A, subspace.B1 @ turn, subspace.B2)
        total.add(each, 0.5)
        expected += 0.5 * dense(each)
    assert relative_distance(dense_tucker(total.total()), expected) < 1e-6
    assert total.cut < 1e-6 * np.linalg.norm(expected)


@patient
@given(seeds, st.integers(1, 8), st.integers(1, 8), st.floats(0, 1))
def test_reduced_is_an_orthogonal_part_and_knows_the_norm_of_the_rest(
    seed: int, terms: int, max_rank: int, floor: float
) -> None:
    total = TuckerSum(GRID, SIDES, None)
    total.add(random_products(np.random.default_rng(seed), terms, 2), 1.0)
    whole = total.total()
    part, cut = reduced(whole, max_rank, floor * whole.norm)
    assert_orthonormal(part)
    assert max(part.core.shape) <= max_rank
    assert np.linalg.norm(dense_tucker(whole) - dense_tucker(part)) == pytest.approx(
        cut, abs=1e-9 * whole.norm
    )
    assert np.hypot(part.norm, cut) == pytest.approx(whole.norm, rel=1e-9)


def test_a_reduction_to_the_leading_direction_of_a_matrix_is_its_truncated_svd() -> None:
    rng = np.random.default_rng(2)
    matrix = rng.standard_normal((7, 5))
    U, S, Vt = np.linalg.svd(matrix, full_matrices=False)
    total = TuckerSum((1, 1), SIDES, None)
    total.add(Products(np.ones((1, 1, 1)), (U * S)[None], Vt[None]), 1.0)
    part, cut = reduced(total.total(), 3)
    np.testing.assert_allclose(dense_tucker(part), (U[:, :3] * S[:3]) @ Vt[:3], atol=1e-6)
    assert cut == pytest.approx(np.linalg.norm(S[3:]), rel=1e-6)


@patient
@given(seeds, st.integers(1, 4), st.integers(1, 4))
def test_the_products_of_a_tucker_form_are_the_same_matrix(seed: int, terms: int, rank: int) -> None:
    total = TuckerSum(GRID, SIDES, None)
    total.add(random_products(np.random.default_rng(seed), terms, rank), 2.0)
    tucker = total.total()
    products = tucker.products()
    assert products.rank == min(tucker.core.shape[1:])
    np.testing.assert_allclose(dense(products), dense_tucker(tucker), atol=1e-11 * tucker.norm)
    np.testing.assert_allclose(dense_tucker(tucker.times(-3)), -3 * dense(products), atol=1e-10 * tucker.norm)


def test_van_loans_rearrangement_of_a_tucker_form_is_the_tensor_of_its_core_and_bases() -> None:
    total = TuckerSum(GRID, SIDES, None)
    total.add(random_products(np.random.default_rng(3), 3, 2), 1.0)
    tucker = total.total()
    tensor = np.einsum("iab,ijk,cj,dk->abcd", tucker.left, tucker.core, tucker.Q1, tucker.Q2, optimize=True)
    np.testing.assert_allclose(rearranged(dense_tucker(tucker), GRID), tensor.reshape(6, 7, 5), atol=1e-12)


def test_products_that_cancel_add_up_to_exactly_zero() -> None:
    products = random_products(np.random.default_rng(4), 2, 3)
    total = TuckerSum(GRID, SIDES)
    for weight in (0.1, 0.2, -0.3):
        total.add(products, weight)
    assert total.total().norm == 0
    assert np.linalg.norm(dense(products)) > 1


def test_an_empty_sum_is_zero() -> None:
    assert not dense_tucker(TuckerSum(GRID, SIDES).total()).any()


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_neither_overflow_nor_underflow_spoils_a_truncated_sum(size: float) -> None:
    rng = np.random.default_rng(5)
    parts = [random_products(rng, 1, 2) for _ in range(8)]
    totals = [TuckerSum(GRID, SIDES, 3) for _ in range(2)]
    for each in parts:
        totals[0].add(each, 1.0)
        totals[1].add(Products(each.A, each.B1 * np.float32(size), each.B2), size**6)
    assert totals[1].total().norm / size**7 == pytest.approx(totals[0].total().norm, rel=1e-5)
    assert totals[1].cut / size**7 == pytest.approx(totals[0].cut, rel=1e-5)
