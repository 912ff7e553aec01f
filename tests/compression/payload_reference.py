"""The payload once more, from docs/formats.md alone: pure Python, one element at a time.

`reference_payload` encodes where the specification leaves no choice, `reference_decode` reads every codec,
and `reference_ecsq_body` writes an `ecsq` body for given codes, so that its words can be compared.
"""

import hashlib
import json
import struct
import zlib
from bisect import bisect_right
from dataclasses import asdict, dataclass
from fractions import Fraction

from compression_cases import WIRE_IDS, blocks_of

from fedkron.layout import AdapterLayout, State, TensorLayout

FIELDS = struct.Struct("<4sBBBBQQ32sI")
HEADER_SIZE = 64
_NAMES = {0: "fp32", 1: "fp16", 2: "int8", 3: "int4", 4: "int8:channel", 5: "int4:channel", 7: "sign"}


def reseal(payload: bytes) -> bytes:
    """Make the checksum right again after the header or the body was changed."""
    checksum = zlib.crc32(payload[:60] + payload[64:])
    return payload[:60] + struct.pack("<I", checksum) + payload[64:]


def sections_of(payload: bytes) -> tuple[bytes, bytes]:
    """The bodies of the factors and of the dense tensors."""
    factors, dense = struct.unpack_from("<QQ", payload, 8)
    return payload[64 : 64 + factors], payload[64 + factors : 64 + factors + dense]


def reference_payload(update: State, layout: AdapterLayout, codec: str, round: int, kind: int = 0) -> bytes:
    """What `encode` has to produce with a codec whose encoder has no choice."""
    bodies = [
        reference_body([float(x) for t in tensors for x in update[t.name].ravel()], tensors, codec)
        for tensors in layout.sections
    ]
    content = json.dumps({"version": 2, **asdict(layout)}, sort_keys=True, separators=(",", ":"))
    contract = hashlib.sha256(content.encode()).digest()
    lengths = map(len, bodies)
    header = FIELDS.pack(b"FKRN", 2, WIRE_IDS[codec], kind, 0, *lengths, contract, round)
    return reseal(header + bytes(4) + b"".join(bodies))


def reference_body(values: list[float], tensors: tuple[TensorLayout, ...], codec: str) -> bytes:
    """Body of one section; empty without tensors."""
    if not tensors:
        return b""
    match codec.partition(":")[0]:
        case "fp32":
            return struct.pack(f"<{len(values)}f", *values)
        case "fp16":
            return _fp16(values)
        case "sign":
            return _sign(values, tensors)
        case family:
            return _blockwise(values, blocks_of(tensors, codec), int(family.removeprefix("int")))


def reference_decode(payload: bytes, layout: AdapterLayout) -> list[float]:
    """All elements of a payload that is right."""
    values: list[float] = []
    for body, tensors in zip(sections_of(payload), layout.sections, strict=True):
        if tensors:
            values += _decoded(body, tensors, payload[5])
    return values


def _decoded(body: bytes, tensors: tuple[TensorLayout, ...], codec: int) -> list[float]:
    count = sum(tensor.size for tensor in tensors)
    if codec == 0:
        return list(struct.unpack(f"<{count}f", body))
    if codec == 6:
        return EcsqBody.read(body, count).values(count)
    (unit,) = struct.unpack_from("<f", body)
    if codec == 1:
        return [float32(half * unit) for half in struct.unpack_from(f"<{count}e", body, 4)]
    blocks = blocks_of(tensors, _NAMES[codec])
    ratios = struct.unpack_from(f"<{len(blocks)}e", body, 4)
    packed = body[4 + 2 * len(blocks) :]
    if codec == 7:
        codes = [-1 if packed[i // 8] >> i % 8 & 1 else 1 for i in range(count)]
    elif codec in (2, 4):
        codes = list(struct.unpack(f"<{count}b", packed))
    else:
        codes = [(packed[i // 2] >> 4 * (i % 2) & 15) - 8 for i in range(count)]
    scales = [float32(ratio * unit) for ratio in ratios]
    return [
        float32(code * scale) for block, scale in zip(blocks, scales, strict=True) for code in codes[block]
    ]


def float32(x: float) -> float:
    """The nearest float32."""
    return struct.unpack("<f", struct.pack("<f", x))[0]


def _fp16(values: list[float]) -> bytes:
    peak = max((abs(x) for x in values), default=0.0)
    unit = 2.0**-15
    while peak >= unit * 2**15:
        unit *= 2
    while 0 < peak < unit * 2**14 and unit > 2.0**-125:
        unit /= 2
    clipped = [max(-65504 * 2.0**112, min(x, 65504 * 2.0**112)) for x in values]
    return struct.pack("<f", unit) + struct.pack(f"<{len(values)}e", *(x / unit for x in clipped))


def _sign(values: list[float], tensors: tuple[TensorLayout, ...]) -> bytes:
    blocks = [values[block] for block in blocks_of(tensors, "sign")]
    means = [float(sum(Fraction(abs(x)) for x in block) / len(block)) if block else 0.0 for block in blocks]
    unit = float32(max(means))
    if unit < 2.0**-126:
        unit = 0.0
    ratios, bits = [], []
    for block, mean in zip(blocks, means, strict=True):
        ratio = struct.unpack("<e", struct.pack("<e", min(mean / unit, 1.0)))[0] if unit else 0.0
        if ratio * unit < 2.0**-126:
            ratio = 0.0
        ratios.append(ratio)
        bits += [int(x < 0 and ratio > 0) for x in block]
    bits += [0] * (-len(bits) % 8)
    packed = bytes(sum(bit << j for j, bit in enumerate(bits[i : i + 8])) for i in range(0, len(bits), 8))
    return struct.pack("<f", unit) + struct.pack(f"<{len(ratios)}e", *ratios) + packed


def _blockwise(values: list[float], places: list[slice], bits: int) -> bytes:
    levels = 2 ** (bits - 1) - 1
    blocks = [values[block] for block in places]
    largest = max((abs(x) for x in values), default=0.0)
    unit = float32(largest / levels)
    if unit * levels > 3.4028234663852886e38:
        unit = struct.unpack("<f", struct.pack("<I", struct.unpack("<I", struct.pack("<f", unit))[0] - 1))[0]
    if unit < 2.0**-126:
        unit = 0.0
    ratios, codes = [], []
    for block in blocks:
        ratio = _half_rounded_up(max(map(abs, block)), largest) if unit else 0.0
        scale = float32(ratio * unit)
        if scale < 2.0**-126:
            ratio = scale = 0.0
        inverse = float32(1 / scale) if scale else 0.0
        ratios.append(ratio)
        codes += [round(float32(x * inverse)) for x in block]
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


@dataclass(frozen=True)
class EcsqBody:
    """What an `ecsq` body says."""

    first: int
    weights: list[int]
    levels: list[float]
    codes: list[int]

    @staticmethod
    def read(body: bytes, count: int) -> "EcsqBody":
        """Parse a body of a section of `count` elements, and decode its codes."""
        first, length = struct.unpack_from("<II", body)
        if length == 0:
            assert (first, len(body)) == (0, 8)
            return EcsqBody(0, [], [], [])
        assert length <= count
        (levels,) = struct.unpack_from("<H", body, 8)
        weights = list(struct.unpack_from(f"<{levels + 1}H", body, 10))
        values = list(struct.unpack_from(f"<{levels}f", body, 12 + 2 * levels))
        rest = body[12 + 6 * levels :]
        words = list(struct.unpack(f"<{len(rest) // 4}I", rest))
        symbols = _ans_decode(words, _cumulative(weights), length)
        return EcsqBody(first, weights, values, [symbol - levels for symbol in symbols])

    def values(self, count: int) -> list[float]:
        """All elements of the section."""
        values = [0.0] * count
        for i, code in enumerate(self.codes):
            level = self.levels[abs(code) - 1] if code else 0.0
            values[(self.first + i) % count] = -level if code < 0 else level
        return values


def reference_ecsq_body(first: int, levels: list[float], codes: list[int]) -> bytes:
    """The body of codes -L..L: weights and words follow from the codes."""
    weights = reference_weights(codes, len(levels))
    words = _ans_encode([code + len(levels) for code in codes], _cumulative(weights))
    return (
        struct.pack("<IIH", first, len(codes), len(levels))
        + struct.pack(f"<{len(weights)}H", *weights)
        + struct.pack(f"<{len(levels)}f", *levels)
        + struct.pack(f"<{len(words)}I", *words)
    )


def reference_weights(codes: list[int], levels: int) -> list[int]:
    """Weights of the magnitudes 0..levels."""
    magnitudes = [abs(code) for code in codes]
    shares = [magnitudes.count(k) / (2 if k else 1) for k in range(levels + 1)]
    return [max(round(share * (65535 / max(shares))), 1) if share else 0 for share in shares]


def _cumulative(weights: list[int]) -> list[int]:
    """Edges of the symbols' intervals in 0..2^24: at least 1 for each, the rest in proportion."""
    symbols = weights[:0:-1] + weights
    scale = (2**24 - len(symbols)) / float(sum(symbols))
    edges, below = [], 0.0
    for i, weight in enumerate(symbols):
        edges.append(int(below * scale) + i)
        below += weight
    return [*edges, 2**24]


def _ans_decode(words: list[int], edges: list[int], count: int) -> list[int]:
    words, state, symbols = list(words), 0, []
    while words and state < 2**32:
        state = state << 32 | words.pop()
    for _ in range(count):
        quantile = state & 0xFFFFFF
        symbol = bisect_right(edges, quantile) - 1
        state = (state >> 24) * (edges[symbol + 1] - edges[symbol]) + quantile - edges[symbol]
        if state < 2**32 and words:
            state = state << 32 | words.pop()
        symbols.append(symbol)
    assert (state, words) == (0, [])
    return symbols


def _ans_encode(symbols: list[int], edges: list[int]) -> list[int]:
    words, state = [], 0
    for symbol in reversed(symbols):
        width = edges[symbol + 1] - edges[symbol]
        if state >= width << 40:
            words.append(state & 0xFFFFFFFF)
            state >>= 32
        state = state // width << 24 | state % width + edges[symbol]
    while state:
        words.append(state & 0xFFFFFFFF)
        state >>= 32
    return words
