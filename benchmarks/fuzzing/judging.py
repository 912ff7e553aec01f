"""What a decoder may do with bytes, whatever they are.

It raises a `FedKronError`, or returns finite numbers of the layout. A mutant that was not
resealed must be refused: that is what the checksum is for. One that is accepted must be
written the one way that its content can be written (`benchmarks.fuzzing.rewriting`).
"""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from benchmarks.fuzzing.mutations import Mutant, Sealing
from benchmarks.fuzzing.rewriting import rewritten
from benchmarks.fuzzing.victims import Victim
from fedkron.compression.payload import decode_vector
from fedkron.errors import FedKronError

ACCEPTED = "accepted"
MEMORY_BASE, MEMORY_FACTOR = 256 * 1024, 8
"""Bytes that decoding may allocate: the base, and so many times the layout as float32."""

SECONDS = 5.0
"""Time that decoding may take, on a busy machine."""


@dataclass(frozen=True)
class Verdict:
    """What became of a mutant, and what it cost."""

    outcome: str
    """The name of the error, or `ACCEPTED`."""
    seconds: float
    allocated: int
    """Most bytes held at a time, on top of what was held before."""


class DecoderFaultError(AssertionError):
    """The decoder did what it must not do."""


@contextmanager
def traced_memory() -> Iterator[None]:
    """Trace allocations: once around all judging, since each start of `tracemalloc` leaks a little."""
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()


def judge(mutant: Mutant, victim: Victim) -> Verdict:
    """Decode a mutant, inside of `traced_memory`.

    Raises `DecoderFaultError`, or what the decoder raised, where that is not allowed.
    """
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    started = time.perf_counter()
    try:
        vector = decode_vector(mutant.data, victim.layout)[1]
        outcome = ACCEPTED
    except FedKronError as error:
        outcome = type(error).__name__
    seconds = time.perf_counter() - started
    allocated = tracemalloc.get_traced_memory()[1] - before
    if allocated > memory_limit(victim):
        raise DecoderFaultError(f"{allocated:,} bytes allocated, the limit is {memory_limit(victim):,}")
    if seconds > SECONDS:
        raise DecoderFaultError(f"decoding took {seconds:.1f} s")
    if outcome == ACCEPTED:
        _check_accepted(mutant, victim, vector)
    return Verdict(outcome, seconds, allocated)


def memory_limit(victim: Victim) -> int:
    """Bytes that decoding a payload of this layout may allocate."""
    return MEMORY_BASE + MEMORY_FACTOR * 4 * victim.layout.size


def _check_accepted(mutant: Mutant, victim: Victim, vector: np.ndarray) -> None:
    if mutant.sealing is Sealing.RAW:
        raise DecoderFaultError("accepted with a checksum that nobody made right")
    if vector.dtype != np.float32 or vector.shape != (victim.layout.size,) or not np.isfinite(vector).all():
        raise DecoderFaultError(f"accepted as {vector.dtype} of shape {vector.shape}, or not finite")
    if rewritten(mutant.data, victim.layout) != mutant.data:
        raise DecoderFaultError("accepted, but written in another way than its content is")
