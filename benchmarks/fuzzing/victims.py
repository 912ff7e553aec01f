"""Right payloads to start from: every codec, on layouts from nothing to a megabyte."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedkron.compression import Kind, codec, encode_vector
from fedkron.layout import AdapterLayout, ModuleLayout, TensorLayout

CODECS = (
    *("fp32", "fp16", "int8", "int8:channel", "int8:stochastic", "int4", "int4:channel", "int4:stochastic"),
    *("sign", "ecsq", "ecsq:0.3", "ecsq:1", "ecsq:8", "ecsq:nmse=0.001"),
)


@dataclass(frozen=True)
class Victim:
    """A payload that decodes, and the layout it was made for."""

    codec: str
    layout: AdapterLayout
    payload: bytes


def layout(factors: Sequence[tuple[int, ...]], dense: Sequence[tuple[int, ...]]) -> AdapterLayout:
    """A layout with factors and dense tensors of these shapes."""
    tensors = tuple(TensorLayout(f"f{i}", shape) for i, shape in enumerate(factors))
    head = tuple(TensorLayout(f"head.{i}", shape) for i, shape in enumerate(dense))
    return AdapterLayout("ab" * 32, (ModuleLayout("q", "kron_lora", 4.0, (24, 10), tensors),), head)


SMALL = (
    layout([(3,), (2, 35)], [(5,)]),
    layout([(1,)], []),
    layout([(0,), (7, 9), ()], [(0, 3)]),
    layout([], [(3, 4, 5), (2,)]),
    layout([(40, 40)], [(2, 129), (2,)]),
    layout([], []),
)
LARGE = layout([(8, 16), (96, 1024), (1024, 160)], [(2, 384), (2,)])
"""About a megabyte as float32."""


def victims(layouts: Sequence[AdapterLayout], seed: int) -> list[Victim]:
    """One payload for each layout, codec and kind of content: Gaussian, plus or minus one size, zeros."""
    rng = np.random.default_rng(seed)
    made = []
    for shape in layouts:
        normal = rng.standard_normal(shape.size).astype(np.float32)
        for number, vector in enumerate((normal, np.copysign(np.float32(1e-3), normal), 0 * normal)):
            for name in CODECS:
                blob = encode_vector(vector, shape, codec(name), round=number, kind=Kind(number), rng=rng)
                made.append(Victim(name, shape, blob))
    return made
