"""Error feedback: what quantization loses in one round is sent in the next.

Seide et al. 2014 (1-bit SGD, section 3.2); Karimireddy et al. 2019 (arXiv 1901.09847, algorithm 2). The
sender keeps the residual; over many rounds the sum of what arrives follows the sum of what was meant, to
within one residual, whatever the codec's bias.
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from fedkron.compression.codecs import Codec
from fedkron.compression.payload import decode_vector, encode_vector
from fedkron.errors import AdapterError
from fedkron.layout import AdapterLayout, State, Vector, flatten


def encode_with_feedback(
    update: State,
    residual: Vector | None,
    layout: AdapterLayout,
    codec: Codec,
    *,
    round: int,
    rng: Generator | None = None,
) -> tuple[bytes, Vector]:
    """Encode `update` plus what earlier rounds lost; return the payload and what this one loses.

    `residual` is a flat float32 vector of `layout.size` elements, `None` before the first round; it is
    not changed. What the receiver decodes and the new residual add up to `update + residual`.

    Raises `AdapterError` when the update or the residual does not fit the layout, or their sum holds NaN
    or infinity.
    """
    accumulated = flatten(update, layout)
    if residual is not None:
        if residual.shape != accumulated.shape:
            raise AdapterError(
                f"residual has shape {list(residual.shape)}, the layout needs [{layout.size}]: "
                "drop the residual when the adapter changes"
            )
        with np.errstate(over="ignore"):  # an infinite sum is refused by name when it is encoded
            accumulated += residual
    blob = encode_vector(accumulated, layout, codec, round=round, rng=rng)
    _, sent = decode_vector(blob, layout)
    return blob, np.subtract(accumulated, sent, out=accumulated)
