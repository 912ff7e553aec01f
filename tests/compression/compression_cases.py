"""Codec names, random layouts and random updates for the tests of compression."""

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from fedkron.layout import AdapterLayout, ModuleLayout, State, TensorLayout

patient = settings(deadline=None, max_examples=60)  # a busy machine is not a failure

EXACTLY_SPECIFIED = ["fp32", "fp16", "int8", "int4", "int8:channel", "int4:channel", "sign"]
"""Codecs whose encoder has no choice: the specification gives every byte."""

STOCHASTIC = ["int8:stochastic", "int4:stochastic"]
ECSQ = ["ecsq", "ecsq:0.3", "ecsq:1", "ecsq:8", "ecsq:nmse=0.01", "ecsq:nmse=1e-6"]
CODEC_NAMES = EXACTLY_SPECIFIED + STOCHASTIC + ECSQ

WIRE_IDS = {
    "fp32": 0,
    "fp16": 1,
    "int8": 2,
    "int8:stochastic": 2,
    "int4": 3,
    "int4:stochastic": 3,
    "int8:channel": 4,
    "int4:channel": 5,
    **dict.fromkeys(ECSQ, 6),
    "sign": 7,
}

shapes = (st.lists(st.integers(0, 90), max_size=2) | st.lists(st.integers(0, 9), min_size=3, max_size=3)).map(
    tuple
)
seeds = st.integers(0, 2**32 - 1)


@st.composite
def layouts(draw: st.DrawFn) -> AdapterLayout:
    """Factors and dense tensors of up to 8100 elements: scalars, empty, one element, odd sizes."""
    factors = [TensorLayout(f"f{i}", shape) for i, shape in enumerate(draw(st.lists(shapes, max_size=4)))]
    dense = [TensorLayout(f"head.{i}", shape) for i, shape in enumerate(draw(st.lists(shapes, max_size=2)))]
    modules = (ModuleLayout("layer.0", "kron_lora", 4.0, (24, 10), tuple(factors)),) if factors else ()
    return AdapterLayout("cd" * 32, modules, tuple(dense))


def layout_of(*sizes: int) -> AdapterLayout:
    """Dense vectors of these sizes and nothing else."""
    return AdapterLayout("", (), tuple(TensorLayout(f"t{i}", (size,)) for i, size in enumerate(sizes)))


def random_update(layout: AdapterLayout, seed: int, size: float = 1e-3) -> State:
    """Tensors of very different sizes, as factors have."""
    rng = np.random.default_rng(seed)
    return {
        t.name: (size * 10.0 ** rng.uniform(-3, 0) * rng.standard_normal(t.shape)).astype(np.float32)
        for t in layout.tensors
    }


def blocks_of(tensors: tuple[TensorLayout, ...], codec: str) -> list[slice]:
    """Blocks of the flat vector that share a scale: 64 elements, rows or tensors; none across two tensors."""
    blocks = []
    start = 0
    for tensor in tensors:
        end = start + tensor.size
        if codec == "sign":
            blocks.append(slice(start, end))
        else:
            row = (tensor.shape or (1,))[-1]
            length = row if codec.endswith(":channel") else 64
            blocks += [slice(first, min(first + length, end)) for first in range(start, end, length or 1)]
        start = end
    return blocks
