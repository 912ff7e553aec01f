"""Entropy coding of quantizer codes: asymmetric numeral systems (Duda et al. 2015), by `constriction`.

All codes share one table. It is symmetric, so a payload carries weights of magnitudes only. How weights
become 24-bit probabilities, and codes 32-bit words, is specified in docs/formats.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fedkron.compression.body import REMEDY
from fedkron.errors import ConfigError, PayloadError

Symbols = npt.NDArray[np.int32]
"""Codes -L..L, moved up by L."""

Weights = npt.NDArray[np.uint16]

_LARGEST_WEIGHT = 2**16 - 1


def quantized_weights(counts: npt.NDArray[np.int64]) -> Weights:
    """Weights of the magnitudes 0..L, shape (L + 1,), out of how often each occurs.

    Those of 1..L hold for each of the two signs. A magnitude that occurs has a weight of at least 1.
    """
    per_symbol = counts.astype(np.float64)
    per_symbol[1:] /= 2
    scaled = np.rint(per_symbol * (_LARGEST_WEIGHT / per_symbol.max()))
    return np.where(counts > 0, np.maximum(scaled, 1), 0).astype("<u2")


def ans_encode(symbols: Symbols, weights: Weights) -> bytes:
    """Little-endian 32-bit words of an ANS coder."""
    coder = _stream().stack.AnsCoder()
    coder.encode_reverse(symbols, _model(weights))
    words: npt.NDArray[np.uint32] = coder.get_compressed()
    return words.astype("<u4", copy=False).tobytes()


def ans_decode(words: npt.NDArray[np.uint32], weights: Weights, count: int) -> Symbols:
    """Inverse of `ans_encode`: `count` symbols.

    Raises `PayloadError` when the words are not exactly those of `count` symbols.
    """
    if words.size and words[-1] == 0:
        raise PayloadError(f"payload's last word is zero; {REMEDY}")
    coder = _stream().stack.AnsCoder(words.astype(np.uint32))
    symbols: Symbols = coder.decode(_model(weights), count)
    # The coder is a bijection: it is empty again if, and only if, the words are those of these symbols.
    if not coder.is_empty():
        raise PayloadError(f"payload's words are not those of {count} codes; {REMEDY}")
    return symbols


def _model(weights: Weights) -> Any:  # noqa: ANN401
    both_signs = np.concatenate((weights[:0:-1], weights)).astype(np.float64)
    return _stream().model.Categorical(both_signs, perfect=False)


def _stream() -> Any:  # noqa: ANN401
    """constriction's coders, imported late: a device that only runs bundles needs none."""
    try:
        from constriction import stream
    except ImportError as error:
        raise ConfigError(
            "codec 'ecsq' needs constriction, for which there is no wheel on Linux with ARM64: build it from "
            "its source, or choose another codec for all nodes, such as int4"
        ) from error
    return stream
