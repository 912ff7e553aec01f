"""Shamir's secret sharing (CACM 1979): any `threshold` of the shares give the secret, fewer say nothing of
it.

The field is the integers modulo the largest prime below 2**256, so that a secret and a share take 32 bytes
each. Each secret has a polynomial of its own, whose other coefficients are uniform: whatever fewer than
`threshold` shares are, every secret fits them equally well.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping

from fedkron.errors import SecurityError

PRIME = 2**256 - 189
SIZE = 32
"""Bytes of a secret, and of a share."""


def random_secret() -> bytes:
    """A uniform element of the field, 32 bytes."""
    return secrets.randbelow(PRIME).to_bytes(SIZE)


def split(secret: bytes, threshold: int, count: int) -> list[bytes]:
    """The shares 1 … `count` of a secret. Raises `SecurityError` for a secret that is not of the field."""
    if not 1 <= threshold <= count:
        raise SecurityError(f"threshold {threshold} is not between 1 and the number of shares, {count}")
    polynomial = [_element(secret), *(secrets.randbelow(PRIME) for _ in range(threshold - 1))]
    return [_value_at(polynomial, x).to_bytes(SIZE) for x in range(1, count + 1)]


def recover(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """The secret of shares by their number; more than `threshold` are not looked at.

    A false share gives a false secret: compare it with what its owner has published. Raises `SecurityError`
    for too few shares and for those that are not of the field.
    """
    if len(shares) < threshold:
        raise SecurityError(f"{len(shares)} shares of a secret are there, it takes {threshold}")
    points = {x: _element(share) for x, share in sorted(shares.items())[:threshold]}
    if min(points) < 1:
        raise SecurityError(f"share {min(points)}: shares are numbered from 1")
    secret = 0
    for x, y in points.items():  # Lagrange, at 0
        above, below = 1, 1
        for other in points:
            if other != x:
                above = above * other % PRIME
                below = below * (other - x) % PRIME
        secret += y * above * pow(below, -1, PRIME)
    return (secret % PRIME).to_bytes(SIZE)


def _value_at(polynomial: list[int], x: int) -> int:
    value = 0
    for coefficient in reversed(polynomial):
        value = (value * x + coefficient) % PRIME
    return value


def _element(data: bytes) -> int:
    number = int.from_bytes(data)
    if len(data) != SIZE or number >= PRIME:
        raise SecurityError(
            f"{len(data)} bytes are not an element of the field: a secret or share has {SIZE}"
        )
    return number
