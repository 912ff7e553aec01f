"""A payload written again from nothing but what its decoder understood.

Of a body two things are kept: the decoded numbers, and the side information that they do not tell, that is
`fp16`'s power of two, the scales of blocks or tensors, the window and the reconstruction values of `ecsq`.
All other bytes follow: codes, signs, relative scales, padding, weights, words, lengths, checksum. If they are
not the same as before, the decoder accepted a second spelling of the same content, in which something can
hide.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np

from fedkron.compression import HEADER_SIZE, Kind
from fedkron.compression.blockwise import fixed_length, row_length
from fedkron.compression.body import absolute_scales
from fedkron.compression.codecs import codec_of_id
from fedkron.compression.entropy import ans_encode, quantized_weights
from fedkron.compression.packing import pack_bytes, pack_nibbles
from fedkron.compression.payload import decode_vector
from fedkron.layout import AdapterLayout, TensorLayout, Vector, elements

Tensors = tuple[TensorLayout, ...]


def rewritten(payload: bytes, layout: AdapterLayout) -> bytes:
    """The payload that says what this one says. Raises whatever decoding raises."""
    header, vector = decode_vector(payload, layout)
    number = payload[5]
    assert codec_of_id(number).name == header.codec
    split = HEADER_SIZE + header.factor_bytes
    edge = elements(layout.sections.factors)
    factors, dense = (
        _body(number, body, values, tensors) if tensors else b""
        for body, values, tensors in zip(
            (payload[HEADER_SIZE:split], payload[split:]),
            (vector[:edge], vector[edge:]),
            layout.sections,
            strict=True,
        )
    )
    start = struct.pack(
        "<4sBBBBQQ32sI",
        *(b"FKRN", header.version, number, Kind[header.kind], 0),
        *(len(factors), len(dense), bytes.fromhex(header.contract), header.round),
    )
    return start + struct.pack("<I", zlib.crc32(start + factors + dense)) + factors + dense


def _body(number: int, body: bytes, values: Vector, tensors: Tensors) -> bytes:
    match number:
        case 0:
            return values.tobytes()
        case 1:
            return (
                body[:4]
                + (values.astype(np.float64) / struct.unpack("<f", body[:4])[0]).astype("<f2").tobytes()
            )
        case 2 | 3:
            lengths = _block_lengths(tensors, [fixed_length(tensor) for tensor in tensors])
        case 4 | 5:
            lengths = _block_lengths(tensors, [row_length(tensor) for tensor in tensors])
        case 6:
            return _ecsq(body, values)
        case _:
            lengths = np.array([tensor.size for tensor in tensors])
    ratios = np.frombuffer(body, "<f2", lengths.size, 4)
    scales = absolute_scales(struct.unpack("<f", body[:4])[0], ratios)
    unit = float(scales.max(initial=0))
    start = struct.pack("<f", unit) + (scales / (unit or 1.0)).astype("<f2").tobytes()
    steps = np.repeat(scales, lengths)
    if number == 7:
        return start + np.packbits(np.signbit(values) & (steps > 0), bitorder="little").tobytes()
    codes = np.rint(np.divide(values, steps, out=np.zeros_like(values), where=steps > 0)).astype(np.int8)
    return start + (pack_bytes(codes) if number in {2, 4} else pack_nibbles(codes))


def _block_lengths(tensors: Tensors, lengths: list[int]) -> np.ndarray:
    blocks = [
        min(length, tensor.size - start)
        for tensor, length in zip(tensors, lengths, strict=True)
        for start in range(0, tensor.size, length)
    ]
    return np.array(blocks, np.int64)


def _ecsq(body: bytes, values: Vector) -> bytes:
    first, count = struct.unpack_from("<II", body)
    if not values.any():
        return bytes(8)
    window = np.take(values, np.arange(first, first + count), mode="wrap")
    (levels,) = struct.unpack_from("<H", body, 8)
    points = np.frombuffer(body, "<f4", levels, 12 + 2 * levels)
    magnitudes = np.searchsorted(np.concatenate((np.zeros(1, np.float32), points)), np.abs(window))
    weights = quantized_weights(np.bincount(magnitudes, minlength=levels + 1))
    symbols = np.where(np.signbit(window), -magnitudes, magnitudes).astype(np.int32) + levels
    start = struct.pack("<IIH", first, count, levels) + weights.tobytes() + points.tobytes()
    return start + ans_encode(symbols.astype(np.int32), weights)
