"""Ways to make a wrong payload out of a right one.

A mutation changes bytes anywhere, or knows the format and attacks one field of it. What comes out is sent in
one of three ways: as it is (the checksum is wrong then), resealed (with a right checksum), or refitted
(resealed, with the lengths in the header made right, so that it gets as far as the codec's own checks).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from random import Random

import numpy as np

from benchmarks.fuzzing.victims import Victim
from fedkron.compression import HEADER_SIZE
from fedkron.compression.entropy import ans_decode, ans_encode
from fedkron.errors import PayloadError

SPECIAL_INTEGERS = (0, 1, 2, 3, 127, 128, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**53)
SPECIAL_LENGTHS = (*SPECIAL_INTEGERS, 2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1)
SPECIAL_FLOATS = tuple(
    map(
        float, ("0", "-0", "1", "-1", "nan", "inf", "-inf", "1e-45", "1e-39", "1.2e-38", "3.4e38", "2", "0.5")
    )
)
_ECSQ = 6


class Sealing(StrEnum):
    """How much of a mutant's envelope is made right again."""

    RAW = "as it is"
    RESEALED = "checksum right"
    REFITTED = "checksum and lengths right"


@dataclass(frozen=True)
class Mutant:
    """Bytes made from a victim."""

    mutation: str
    sealing: Sealing
    data: bytes


Mutation = Callable[[bytearray, Random, Victim], None]
"""Changes a payload in place, with chance and another victim to take things from."""


def mutant_of(victim: Victim, other: Victim, chance: Random) -> Mutant:
    """One mutant, never one of the two payloads themselves: one mutation or, now and then, two."""
    while True:
        data = bytearray(victim.payload)
        names = chance.sample(list(MUTATIONS), k=1 if chance.random() < 0.8 else 2)
        for name in names:
            MUTATIONS[name](data, chance, other)
        sealing = chance.choice(list(Sealing))
        if (mutant := sealed(bytes(data), sealing)) not in {victim.payload, other.payload}:
            return Mutant(names[0], sealing, mutant)


def sealed(data: bytes, sealing: Sealing) -> bytes:
    """Make as much of the envelope right as `sealing` says; what has no whole header stays as it is."""
    if sealing is Sealing.RAW or len(data) < HEADER_SIZE:
        return data
    fields = data[: HEADER_SIZE - 4]
    body = data[HEADER_SIZE:]
    if sealing is Sealing.REFITTED:
        factors = min(struct.unpack_from("<Q", fields, 8)[0], len(body))
        fields = fields[:8] + struct.pack("<QQ", factors, len(body) - factors) + fields[24:]
    return fields + struct.pack("<I", zlib.crc32(body, zlib.crc32(fields))) + body


def flip_bits(data: bytearray, chance: Random, other: Victim) -> None:  # noqa: ARG001
    """One to eight bits."""
    for _ in range(chance.randint(1, 8) if data else 0):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def overwrite(data: bytearray, chance: Random, other: Victim) -> None:  # noqa: ARG001
    """A run of noise, zeros or ones over what was there."""
    at = chance.randrange(len(data) + 1)
    run = min(chance.randint(1, 64), len(data) - at)
    data[at : at + run] = chance.choice((chance.randbytes(run), bytes(run), b"\xff" * run))


def splice(data: bytearray, chance: Random, other: Victim) -> None:
    """A run of another payload's bytes, in the place of some of these."""
    start, at = chance.randrange(len(other.payload)), chance.randrange(len(data) + 1)
    data[at : at + chance.randint(0, 32)] = other.payload[start : start + chance.randint(0, 32)]


def cut_off(data: bytearray, chance: Random, other: Victim) -> None:  # noqa: ARG001
    """Truncated anywhere."""
    del data[chance.randrange(len(data) + 1) :]


def remove(data: bytearray, chance: Random, other: Victim) -> None:  # noqa: ARG001
    """A few bytes missing in the middle."""
    at = chance.randrange(len(data) + 1)
    del data[at : at + chance.randint(1, 8)]


def extend(data: bytearray, chance: Random, other: Victim) -> None:
    """More bytes at the end: zeros, noise, a whole other payload."""
    data += chance.choice((bytes(chance.randint(1, 8)), chance.randbytes(4), other.payload))


def header_field(data: bytearray, chance: Random, other: Victim) -> None:
    """Another version, codec, kind, reserved byte, length, contract or round."""
    if len(data) < HEADER_SIZE:
        return
    match chance.randrange(6):
        case 0:
            data[chance.choice((0, 1, 2, 3, 4))] = chance.randrange(256)
        case 1:
            data[5] = chance.choice((*range(10), 255))
        case 2:
            data[6], data[7] = chance.randrange(5), chance.choice((0, 0, 1, 255))
        case 3:
            data[8 + chance.randrange(48)] ^= 1 << chance.randrange(8)
        case _:
            lengths(data, chance, other)


def lengths(data: bytearray, chance: Random, other: Victim) -> None:  # noqa: ARG001
    """Lengths of the bodies up to 2^64 - 1, alone or such that their sum is right."""
    if len(data) < HEADER_SIZE:
        return
    body = len(data) - HEADER_SIZE
    first, second = struct.unpack_from("<QQ", data, 8)
    moved = chance.choice((0, body, chance.randint(0, body)))
    pairs = (
        (chance.choice(SPECIAL_LENGTHS), second),
        (first, chance.choice(SPECIAL_LENGTHS)),
        (moved, body - moved),
        (first + 2**63, (body - first - 2**63) % 2**64),  # their sum wraps to the right one in 64 bits
    )
    struct.pack_into("<QQ", data, 8, *(length % 2**64 for length in chance.choice(pairs)))


def crossover(data: bytearray, chance: Random, other: Victim) -> None:
    """This header before another codec's body, or another header's codec before this body."""
    if chance.random() < 0.5:
        data[HEADER_SIZE:] = other.payload[HEADER_SIZE:]
    elif len(data) > 5:
        data[5] = other.payload[5]


def side_information(data: bytearray, chance: Random, other: Victim) -> None:  # noqa: ARG001
    """Unit, relative scales or first elements of a body: numbers that are special, or just other ones."""
    at, _ = _body(data, chance)
    number = chance.choice((*SPECIAL_FLOATS, chance.uniform(-2, 2), 2.0 ** chance.randint(-149, 127)))
    half = chance.choice((struct.pack("<H", chance.randrange(2**16)), b"\0\0", b"\0\x3c", b"\0\x80"))
    if chance.random() < 0.5:
        _put(data, at, struct.pack("<f", number))
    else:
        _put(data, at + 4 + 2 * chance.randrange(8), half)


def entropy_table(data: bytearray, chance: Random, other: Victim) -> None:
    """Window, number of levels, weights, reconstruction values or words of an entropy-coded body."""
    if len(data) < HEADER_SIZE or data[5] != _ECSQ:
        side_information(data, chance, other)
        return
    at, _ = _body(data, chance)
    levels = struct.unpack_from("<H", data, at + 8)[0] if len(data) >= at + 10 else 0
    words = at + 12 + 6 * levels
    match chance.randrange(7):
        case 0:
            _put(data, at + 4 * chance.randrange(2), struct.pack("<I", chance.choice(SPECIAL_INTEGERS[:-1])))
        case 1:
            _add(data, at + 4 * chance.randrange(2), "<I", chance.randint(-3, 3))
        case 2:
            _put(
                data,
                at + 8,
                struct.pack("<H", chance.choice((0, 1, 2, 4095, 4096, 65535, levels + 1)) % 2**16),
            )
        case 3:
            _add(data, at + 10 + 2 * chance.randint(0, levels), "<H", chance.choice((-1, 1, 2, 100, 2**15)))
        case 4:
            value = chance.choice((*SPECIAL_FLOATS, chance.uniform(0, 2)))
            _put(
                data,
                at + 12 + 2 * levels + 4 * chance.randint(0, max(levels - 1, 0)),
                struct.pack("<f", value),
            )
        case 5:
            _add(data, min(words, len(data) - 4), "<I", chance.choice((-1, 1, 2**16, 2**31)))
        case 6:
            data[words:words] = chance.choice((bytes(4), chance.randbytes(4), data[words : words + 4]))


def entropy_recoded(data: bytearray, chance: Random, other: Victim) -> None:
    """An entropy-coded body whose words are right, but for another table, other codes or another count."""
    if len(data) < HEADER_SIZE or data[5] != _ECSQ:
        side_information(data, chance, other)
        return
    at, end = _body(data, chance)
    try:
        first, count, levels = struct.unpack_from("<IIH", data, at)
        weights = np.frombuffer(bytes(data), "<u2", levels + 1, at + 10).copy()
        points = np.frombuffer(bytes(data), "<f4", levels, at + 12 + 2 * levels).copy()
        words = np.frombuffer(bytes(data[at + 12 + 6 * levels : end]), "<u4")
        symbols = ans_decode(words, weights, min(count, len(data) * 8))
    except (PayloadError, ValueError, struct.error):  # changed before, or all zeros
        return
    if not symbols.size:
        return
    place = chance.randrange(levels + 1)
    match chance.randrange(5):
        case 0:
            weights[place] = max(1, (int(weights[place]) + chance.choice((-1, 1, 7, 2**14))) % 2**16)
        case 1:
            symbols[chance.randrange(symbols.size)] = chance.randint(0, 2 * levels)
        case 2:
            symbols = np.append(symbols, symbols[: chance.randint(1, 4)])
        case 3:
            weights //= 2
            weights[-1] = max(weights[-1], 1)
        case 4:  # a level that nothing has
            weights, points = np.append(weights, np.uint16(1)), np.append(points, np.float32(2 * points[-1]))
            symbols += 1
            levels += 1
    head = struct.pack("<IIH", first, symbols.size, levels) + weights.tobytes() + points.tobytes()
    body = head + ans_encode(symbols, weights)
    data[at:end] = body
    struct.pack_into("<Q", data, 8 if at == HEADER_SIZE else 16, len(body))


MUTATIONS: dict[str, Mutation] = {
    "flip bits": flip_bits,
    "overwrite": overwrite,
    "splice": splice,
    "cut off": cut_off,
    "remove": remove,
    "extend": extend,
    "header field": header_field,
    "lengths": lengths,
    "crossover": crossover,
    "side information": side_information,
    "entropy table": entropy_table,
    "entropy recoded": entropy_recoded,
}


def _body(data: bytearray, chance: Random) -> tuple[int, int]:
    """Where one of the bodies begins and ends."""
    if len(data) < HEADER_SIZE:
        return HEADER_SIZE, HEADER_SIZE
    split = HEADER_SIZE + min(struct.unpack_from("<Q", data, 8)[0], len(data) - HEADER_SIZE)
    return chance.choice(((HEADER_SIZE, split), (split, len(data))))


def _put(data: bytearray, at: int, replacement: bytes) -> None:
    """Overwrite what is there; nothing behind the end."""
    if at + len(replacement) <= len(data):
        data[at : at + len(replacement)] = replacement


def _add(data: bytearray, at: int, form: str, change: int) -> None:
    """Add to an integer, modulo its range."""
    size = struct.calcsize(form)
    if 0 <= at <= len(data) - size:
        (number,) = struct.unpack_from(form, data, at)
        struct.pack_into(form, data, at, (number + change) % 2 ** (8 * size))
