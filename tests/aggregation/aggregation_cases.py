"""Small layouts and adapters, and ΔW the dense way: what the tests of aggregation compare with."""

from collections.abc import Sequence

import numpy as np

from fedkron.aggregation import Aggregate, Aggregator, FactorwiseMean, MergedMean
from fedkron.layout import AdapterLayout, ModuleLayout, State, TensorLayout


def kron_module(
    *, left: tuple[int, int] = (4, 2), d_B2: int = 6, rank: int = 2, d_B1: int = 5, scale: float = 4.0
) -> ModuleLayout:
    factors = (
        TensorLayout("A", left),
        TensorLayout("B1", (d_B2, rank)),
        TensorLayout("B2", (rank, d_B1)),
    )
    return ModuleLayout("q", "kron_lora", scale, (left[0] * d_B2, left[1] * d_B1), factors)


def lora_module(*, d_out: int = 9, rank: int = 2, d_in: int = 5, scale: float = 3.0) -> ModuleLayout:
    factors = (TensorLayout("lora_A", (rank, d_in)), TensorLayout("lora_B", (d_out, rank)))
    return ModuleLayout("v", "lora", scale, (d_out, d_in), factors)


def layout_of(*modules: ModuleLayout, dense: tuple[TensorLayout, ...] = ()) -> AdapterLayout:
    return AdapterLayout("ab" * 32, modules, dense)


def random_adapter(layout: AdapterLayout, rng: np.random.Generator) -> State:
    return {t.name: rng.standard_normal(t.shape).astype(np.float32) for t in layout.tensors}


def neighbours(
    layout: AdapterLayout, count: int, rng: np.random.Generator, spread: float = 0.3
) -> list[State]:
    """Clients that started from one adapter and moved apart, as they do in a federation."""
    start = random_adapter(layout, rng)
    steps = [random_adapter(layout, rng) for _ in range(count)]
    return [{name: start[name] + np.float32(spread) * step[name] for name in start} for step in steps]


def delta(adapter: State, module: ModuleLayout) -> np.ndarray:
    """ΔW of one module, dense, in float64."""
    f = {t.name: adapter[module.tensor_name(t.name)].astype(np.float64) for t in module.factors}
    if module.kind == "lora":
        return module.scale * (f["lora_B"] @ f["lora_A"])
    if module.kind == "krona":
        return module.scale * np.kron(f["A"], f["B"])
    return module.scale * np.kron(f["A"], f["B1"] @ f["B2"])


def mean_delta(adapters: list[State], weights: list[float], module: ModuleLayout) -> np.ndarray:
    return sum(w * delta(a, module) for a, w in zip(adapters, weights, strict=True)) / sum(weights)


def relative_distance(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def krona_module(
    *, left: tuple[int, int] = (4, 2), d_B2: int = 3, d_B1: int = 5, scale: float = 2.0
) -> ModuleLayout:
    factors = (TensorLayout("A", left), TensorLayout("B", (d_B2, d_B1)))
    return ModuleLayout("k", "krona", scale, (left[0] * d_B2, left[1] * d_B1), factors)


def terms_delta(terms: State | None, module: ModuleLayout) -> np.ndarray:
    """ΔW of the terms of one module, dense, in float64; zero where it has none."""
    if terms is None or f"{module.path}.terms.A" not in terms:
        return np.zeros(module.weight_shape)
    factors = (terms[f"{module.path}.terms.{name}"].astype(np.float64) for name in ("A", "B1", "B2"))
    return sum(np.kron(A, B1 @ B2) for A, B1, B2 in zip(*factors, strict=True))


def combined(aggregator: Aggregator, adapters: Sequence[State], weights: Sequence[float]) -> Aggregate:
    for adapter, weight in zip(adapters, weights, strict=True):
        aggregator.add(adapter, weight)
    return aggregator.finish()


def merged_mean(adapters: Sequence[State], weights: Sequence[float], layout: AdapterLayout) -> Aggregate:
    return combined(MergedMean(layout), adapters, weights)


def factorwise_mean(adapters: Sequence[State], weights: Sequence[float], layout: AdapterLayout) -> State:
    return combined(FactorwiseMean(layout), adapters, weights).adapter


def rearranged(matrix: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Van Loan's rearrangement: block (i, j) of d_A2 × d_A1 blocks becomes row (i·d_A1 + j)."""
    d_A2, d_A1 = grid
    blocks = matrix.reshape(d_A2, matrix.shape[0] // d_A2, d_A1, -1).transpose(0, 2, 1, 3)
    return blocks.reshape(d_A2 * d_A1, *blocks.shape[2:])


def grid_of(module: ModuleLayout) -> tuple[int, int]:
    """(d_A2, d_A1)."""
    return (1, 1) if module.kind == "lora" else module.factors[0].shape


def dense_alternation(tensor: np.ndarray, rank: int, start: np.ndarray) -> np.ndarray:
    """Nearest a ⊗ (rank-r B) to the dense rearranged tensor, by 500 plain alternations."""
    a = start / np.linalg.norm(start)
    for _ in range(500):
        U, S, Vt = np.linalg.svd(np.tensordot(a, tensor, axes=1), full_matrices=False)
        B = (U[:, :rank] * S[:rank]) @ Vt[:rank]
        a = np.tensordot(tensor, B, axes=2)
        a /= np.linalg.norm(a)
    return np.multiply.outer(a, B)


def leading_left_vector(tensor: np.ndarray) -> np.ndarray:
    return np.linalg.svd(tensor.reshape(len(tensor), -1), full_matrices=False)[0][:, 0]


def truncated_svd(matrix: np.ndarray, rank: int) -> np.ndarray:
    U, S, Vt = np.linalg.svd(matrix, full_matrices=False)
    return (U[:, :rank] * S[:rank]) @ Vt[:rank]
