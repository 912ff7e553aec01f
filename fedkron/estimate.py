"""What a payload will weigh, before there is one."""

from __future__ import annotations

import numpy as np

from fedkron.compression import HEADER_SIZE, codec, encode_vector, payload_sizes
from fedkron.layout import AdapterLayout

SAMPLE = 1 << 18
"""Parameters that are encoded to find out what all of them take."""


def payload_bytes(layout: AdapterLayout, name: str) -> int:
    """Bytes of one payload; where the content decides, what normally distributed updates take."""
    sizes = payload_sizes(layout, codec(name))
    if len(sizes) == 1:
        return sizes[0]
    sample = AdapterLayout.of_arrays({"sample": np.empty(min(layout.size, SAMPLE), np.float32)})
    update = np.random.default_rng(0).standard_normal(sample.size, np.float32)
    body = len(encode_vector(update, sample, codec(name), round=1)) - HEADER_SIZE
    return HEADER_SIZE + round(body * layout.size / sample.size)
