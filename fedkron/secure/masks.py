"""Masks: streams of uniform words that vanish from the sum.

Every pair of nodes agrees on a stream that one of them adds and the other subtracts; every node adds one of
its own besides, which the server learns of those whose uploads it adds up (Bonawitz et al. 2017, section
4.2).
"""

from __future__ import annotations

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

from fedkron.secure.keys import derived_key
from fedkron.secure.packing import WORD, Words

_FIRST_BLOCK = bytes(16)
"""Counter 0 and nonce 0. A key makes one stream in its life: it is derived from secrets that are drawn for
one round, and from what the round is about. So no nonce can repeat under a key.
"""


def stream(key: bytes, words: int) -> Words:
    """ChaCha20's key stream (RFC 8439) as uniform 64-bit words, at most 256 GiB of them."""
    octets = Cipher(ChaCha20(key, _FIRST_BLOCK), mode=None).encryptor().update(bytes(words * WORD.itemsize))
    return np.frombuffer(octets, WORD).astype(np.uint64, copy=False)


def own_stream(seed: bytes, binding: bytes, words: int) -> Words:
    """The mask that a node adds for itself."""
    return stream(derived_key(seed, b"own mask" + binding), words)


def pair_stream(key: bytes, node: int, other: int, words: int) -> Words:
    """The mask of a pair as `node` adds it: `other` adds its negative, modulo 2**64."""
    mask = stream(key, words)
    return mask if node < other else np.negative(mask)
