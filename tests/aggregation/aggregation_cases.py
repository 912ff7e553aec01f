"""Small layouts and adapters, and ΔW the dense way: what the tests of aggregation compare with."""

import numpy as np

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
    return module.scale * np.kron(f["A"], f["B1"] @ f["B2"])


def mean_delta(adapters: list[State], weights: list[float], module: ModuleLayout) -> np.ndarray:
    return sum(w * delta(a, module) for a, w in zip(adapters, weights, strict=True)) / sum(weights)


def relative_distance(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))
