"""What is compared: fedkron's codecs as payloads, `int4` with other block sizes, and bitsandbytes' NF4."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit

from fedkron.compression import HEADER_SIZE, codec, decode, encode
from fedkron.compression.blockwise import INT4
from fedkron.layout import AdapterLayout, TensorLayout, Vector, flatten, unflatten

Compressor = Callable[[Vector, AdapterLayout], tuple[int, Vector]]
"""The bytes that a vector of a layout takes, and what arrives."""

DEFAULT = "ecsq"
"""The low-bit codec that the goal is about."""

CODECS = (
    "fp32",
    "fp16",
    "int8",
    "int8:channel",
    "int8:stochastic",
    "int4",
    "int4:channel",
    "int4:stochastic",
    "ecsq:nmse=0.01",
    "ecsq:nmse=0.1",
    DEFAULT,
    "sign",
)
SWEEP = tuple(f"ecsq:{bits:g}" for bits in (0.3, 0.5, 0.7, 1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 6))
BLOCK_SIZES = (16, 32, 64, 128, 256)
NF4_BLOCK_SIZES = (64, 128, 256, 512)


def compressors() -> dict[str, Compressor]:
    """All of them by name."""
    return {
        **{name: partial(_payload, name) for name in dict.fromkeys((*CODECS, *SWEEP))},
        **{int4_blocks(size): _int4(size) for size in BLOCK_SIZES},
        **{nf4_blocks(size): partial(_nf4, size, False) for size in NF4_BLOCK_SIZES},
        NF4_DOUBLE: partial(_nf4, NF4_BLOCK_SIZES[0], True),
    }


def int4_blocks(size: int) -> str:
    """What `int4` with blocks of this size is called here."""
    return f"int4/{size}"


def nf4_blocks(size: int) -> str:
    """What NF4 with blocks of this size is called here."""
    return f"NF4/{size}"


NF4_DOUBLE = f"NF4/{NF4_BLOCK_SIZES[0]} double"
"""NF4 whose scales are quantized to 8 bits again."""


def _payload(name: str, vector: Vector, layout: AdapterLayout) -> tuple[int, Vector]:
    blob = encode(unflatten(vector, layout), layout, codec(name), round=0)
    return len(blob), flatten(decode(blob, layout).update, layout)


def _int4(size: int) -> Compressor:
    def block_length(tensor: TensorLayout) -> int:  # noqa: ARG001
        return size

    blocks = replace(INT4, block_length=block_length)

    def compress(vector: Vector, layout: AdapterLayout) -> tuple[int, Vector]:
        # Not a payload: the wire knows one block size only. An adapter without a head is one section.
        body = blocks.quantize(vector, layout.tensors, np.random.default_rng(0))
        return HEADER_SIZE + len(body), blocks.dequantize(memoryview(body), layout.tensors)

    return compress


def _nf4(size: int, scales_in_8_bits: bool, vector: Vector, layout: AdapterLayout) -> tuple[int, Vector]:  # noqa: ARG001
    codes, state = quantize_4bit(
        torch.from_numpy(vector), blocksize=size, compress_statistics=scales_in_8_bits, quant_type="nf4"
    )
    return _bytes((codes, *_scales(state))), dequantize_4bit(codes, state).numpy().reshape(vector.shape)


def _scales(state: object) -> Sequence[torch.Tensor]:
    """What the receiver needs besides codes and the standard's constants."""
    nested = state.state2
    return (state.absmax,) if nested is None else (state.absmax, nested.absmax, state.offset)


def _bytes(tensors: Sequence[torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
