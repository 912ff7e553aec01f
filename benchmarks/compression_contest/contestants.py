"""Who takes part: fedkron's codecs, copies of memory, and quantizers of bitsandbytes and torchao."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from bitsandbytes import functional as bnb

from benchmarks.rate_distortion_study.measure import normalised_error
from fedkron.compression import codec, decode, encode
from fedkron.layout import AdapterLayout, Vector, flatten, unflatten

COPY = "memory copy"
CODECS = (
    "fp32", "fp16",
    "int8", "int8:channel", "int8:stochastic",
    "int4", "int4:channel", "int4:stochastic",
    "ecsq:0.5", "ecsq:1", "ecsq", "ecsq:4", "ecsq:nmse=0.01",
    "sign",
)  # fmt: skip
BLOCK_SIZE = 64


@dataclass(frozen=True)
class Contestant:
    """Two calls to time on one thread or more, and what the encoded vector is like.

    `size` counts codes and scales in bytes (a payload as a whole), `error` is ‖x − x̂‖² / ‖x‖².
    """

    name: str
    threads: int
    encode: Callable[[], object]
    decode: Callable[[], object]
    size: int
    error: float


def contestants(vector: Vector, layout: AdapterLayout, threads: tuple[int, ...]) -> Iterator[Contestant]:
    """All that are installed; those that can use several threads once with each number of `threads`."""
    state = unflatten(vector, layout)
    first, second = np.empty_like(vector), np.empty_like(vector)

    def copied(source: Vector, target: Vector) -> Vector:
        np.copyto(target, source)
        return target

    yield _contestant(
        COPY,
        1,
        vector,
        lambda: copied(vector, first),
        lambda there: copied(there, second),
        size=lambda there: there.nbytes,
    )
    yield _contestant(
        "copy into new memory", 1, vector, vector.copy, np.copy, size=lambda there: there.nbytes
    )
    for name in CODECS:
        chosen = codec(name)
        yield _contestant(
            f"fedkron {name}",
            1,
            vector,
            lambda chosen=chosen: encode(state, layout, chosen, round=0),
            lambda blob: decode(blob, layout).update,
            size=len,
            flat=lambda update: flatten(update, layout),
        )
    for count in threads:
        torch.set_num_threads(count)
        yield from _bitsandbytes(vector, count)
        if torchao_is_installed():
            yield from _torchao(vector, count)


def torchao_is_installed() -> bool:
    """It is optional: no dependency of the project."""
    return find_spec("torchao") is not None


def _contestant(
    name: str,
    threads: int,
    vector: Vector,
    encode: Callable[[], Any],
    decode: Callable[[Any], Any],
    *,
    size: Callable[[Any], int],
    flat: Callable[[Any], Vector] = np.ravel,
) -> Contestant:
    encoded = encode()
    error = normalised_error(vector, flat(decode(encoded)))
    return Contestant(name, threads, encode, lambda: decode(encoded), size(encoded), error)


def _bitsandbytes(vector: Vector, threads: int) -> Iterator[Contestant]:
    tensor = torch.from_numpy(vector)

    def size(encoded: tuple[torch.Tensor, bnb.QuantState]) -> int:
        return encoded[0].nbytes + encoded[1].absmax.nbytes

    yield _contestant(
        "bitsandbytes 8 bit, block-wise",
        threads,
        vector,
        lambda: bnb.quantize_blockwise(tensor, blocksize=BLOCK_SIZE),
        lambda encoded: bnb.dequantize_blockwise(*encoded),
        size=size,
    )
    for kind in ("fp4", "nf4"):
        yield _contestant(
            f"bitsandbytes {kind}",
            threads,
            vector,
            lambda kind=kind: bnb.quantize_4bit(tensor, blocksize=BLOCK_SIZE, quant_type=kind),
            lambda encoded: bnb.dequantize_4bit(*encoded),
            size=size,
        )


def _torchao(vector: Vector, threads: int) -> Iterator[Contestant]:
    from torchao.quantization import IntxUnpackedToInt8Tensor, NF4Tensor

    blocks = torch.from_numpy(vector).view(-1, BLOCK_SIZE)
    for bits, dtype in ((8, torch.int8), (4, torch.int4)):
        yield _contestant(
            f"torchao int{bits}, a byte a code",
            threads,
            vector,
            lambda dtype=dtype: IntxUnpackedToInt8Tensor.from_hp(blocks, (1, BLOCK_SIZE), dtype),
            lambda encoded: encoded.dequantize(),
            size=lambda encoded: encoded.qdata.nbytes + encoded.scale.nbytes,
        )
    # The scales are quantized in blocks, too, and their number has to be a multiple of the block size.
    scales = next(size for size in (256, 128, 64, 32, 16, 8, 4, 2, 1) if len(blocks) % size == 0)
    yield _contestant(
        "torchao nf4",
        threads,
        vector,
        lambda: NF4Tensor.from_tensor(blocks, BLOCK_SIZE, scales),
        lambda encoded: encoded.get_original_weight(),
        size=lambda encoded: sum(
            part.nbytes
            for part in (encoded.quantized_data, encoded.quantized_scalers, encoded.quantization_factor)
        ),
    )
