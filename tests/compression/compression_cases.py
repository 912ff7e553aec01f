"""Random layouts and updates, and the payload format once more in pure Python, from docs/formats.md alone."""

import hashlib
import json
import struct
import zlib
from dataclasses import asdict
from fractions import Fraction

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from fedkron.layout import AdapterLayout, ModuleLayout, State, TensorLayout

patient = settings(deadline=None, max_examples=60)  # a busy machine is not a failure

CODEC_NAMES = ["fp32", "fp16", "int8", "int4"]
HEADER = struct.Struct("<4sBBHQQ32sII")

shapes = st.lists(st.integers(0, 90), min_size=0, max_size=2).map(tuple)
seeds = st.integers(0, 2**32 - 1)


@st.composite
def layouts(draw: st.DrawFn) -> AdapterLayout:
    """Factors and dense tensors of up to 8100 elements: scalars, empty, one element, odd sizes."""
    factors = [TensorLayout(f"f{i}", shape) for i, shape in enumerate(draw(st.lists(shapes, max_size=4)))]
    dense = [TensorLayout(f"head.{i}", shape) for i, shape in enumerate(draw(st.lists(shapes, max_size=2)))]
    modules = (ModuleLayout("layer.0", "kron_lora", 4.0, (24, 10), tuple(factors)),) if factors else ()
    return AdapterLayout("cd" * 32, modules, tuple(dense))


def random_update(layout: AdapterLayout, seed: int, size: float = 1e-3) -> State:
    """Tensors of very different sizes, as factors have."""
    rng = np.random.default_rng(seed)
    return {
        t.name: (size * 10.0 ** rng.uniform(-3, 0) * rng.standard_normal(t.shape)).astype(np.float32)
        for t in layout.tensors
    }


def blocks_of(layout: AdapterLayout) -> list[slice]:
    """Blocks of up to 64 elements of the flat vector, none across two tensors."""
    blocks = []
    start = 0
    for tensor in layout.tensors:
        end = start + tensor.size
        blocks += [slice(first, min(first + 64, end)) for first in range(start, end, 64)]
        start = end
    return blocks


def reseal(payload: bytes) -> bytes:
    """Make the checksum right again after the header or the body was changed."""
    checksum = zlib.crc32(payload[:60] + payload[64:])
    return payload[:60] + struct.pack("<I", checksum) + payload[64:]


def reference_payload(update: State, layout: AdapterLayout, codec: str, round: int) -> bytes:
    """What `encode` has to produce, one element at a time."""
    values = [float(x) for tensor in layout.tensors for x in update[tensor.name].ravel()]
    body = {
        "fp32": lambda: struct.pack(f"<{len(values)}f", *values),
        "fp16": lambda: _reference_fp16(values),
        "int8": lambda: _reference_blockwise(values, layout, 8),
        "int4": lambda: _reference_blockwise(values, layout, 4),
    }[codec]()
    content = json.dumps({"version": 2, **asdict(layout)}, sort_keys=True, separators=(",", ":"))
    contract = hashlib.sha256(content.encode()).digest()
    number = CODEC_NAMES.index(codec)
    header = HEADER.pack(b"FKRN", 1, number, 0, len(values), len(body), contract, round, 0)
    return reseal(header + body)


def _float32(x: float) -> float:
    return struct.unpack("<f", struct.pack("<f", x))[0]


def _reference_fp16(values: list[float]) -> bytes:
    peak = max((abs(x) for x in values), default=0.0)
    unit = 2.0**-15
    while peak >= unit * 2**15:
        unit *= 2
    while 0 < peak < unit * 2**14 and unit > 2.0**-126:
        unit /= 2
    clipped = [max(-65504 * 2.0**112, min(x, 65504 * 2.0**112)) for x in values]
    return struct.pack("<f", unit) + struct.pack(f"<{len(values)}e", *(x / unit for x in clipped))


def _reference_blockwise(values: list[float], layout: AdapterLayout, bits: int) -> bytes:
    levels = 2 ** (bits - 1) - 1
    blocks = [values[block] for block in blocks_of(layout)]
    largest = max((abs(x) for x in values), default=0.0)
    unit = _float32(largest / levels)
    if unit * levels > 3.4028234663852886e38:
        unit = struct.unpack("<f", struct.pack("<I", struct.unpack("<I", struct.pack("<f", unit))[0] - 1))[0]
    if unit < 2.0**-126:
        unit = 0.0
    ratios, codes = [], []
    for block in blocks:
        ratio = _half_rounded_up(max(map(abs, block)), largest) if unit else 0.0
        scale = _float32(ratio * unit)
        if scale < 2.0**-126:
            ratio = scale = 0.0
        inverse = _float32(1 / scale) if scale else 0.0
        ratios.append(ratio)
        codes += [round(_float32(x * inverse)) for x in block]
    if bits == 8:
        packed = struct.pack(f"<{len(codes)}b", *codes)
    else:
        nibbles = [code + 8 for code in codes] + [0] * (len(codes) % 2)
        packed = bytes(low | high << 4 for low, high in zip(nibbles[::2], nibbles[1::2], strict=True))
    return struct.pack("<f", unit) + struct.pack(f"<{len(ratios)}e", *ratios) + packed


def _half_rounded_up(part: float, whole: float) -> float:
    """The smallest float16 that is not below part / whole."""
    half = struct.pack("<e", part / whole)
    if Fraction(struct.unpack("<e", half)[0]) < Fraction(part / whole):
        half = struct.pack("<H", struct.unpack("<H", half)[0] + 1)
    return struct.unpack("<e", half)[0]
