"""Where the noise of a private run comes from: the operating system, and never the run's seed."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


@contextmanager
def noise_of_the_system() -> Iterator[None]:
    """Inside, numpy's global generator, from which Flower draws its noise, has a fresh 256-bit seed.

    Afterwards it goes on as before, for others may have seeded it.
    """
    before = np.random.get_bit_generator()  # type: ignore[attr-defined]
    np.random.set_bit_generator(np.random.PCG64DXSM(secrets.randbits(256)))  # type: ignore[attr-defined]
    try:
        yield
    finally:
        np.random.set_bit_generator(before)  # type: ignore[attr-defined]
