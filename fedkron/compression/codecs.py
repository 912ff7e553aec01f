"""The codecs that exist. A new one is a file with its class, and a line in `CODECS`."""

from __future__ import annotations

from typing import Protocol

from fedkron.compression.blockwise import INT4, INT8
from fedkron.compression.floating import FP16, FP32
from fedkron.errors import ConfigError, PayloadError
from fedkron.layout import AdapterLayout, Vector


class Codec(Protocol):
    """How a flat float32 vector becomes the body of a payload, and back. Stateless and deterministic."""

    @property
    def name(self) -> str:
        """What a run config calls it."""

    @property
    def id(self) -> int:
        """What the wire calls it, 0..255: never given to another codec."""

    def size(self, layout: AdapterLayout) -> int:
        """Exact number of bytes of a body."""

    def quantize(self, vector: Vector, layout: AdapterLayout) -> bytes:
        """Body of a finite vector of `layout.size` elements."""

    def dequantize(self, body: bytes | memoryview, layout: AdapterLayout) -> Vector:
        """The vector in a body of exactly `size(layout)` bytes: new, finite, of `layout.size` elements.

        Raises `PayloadError` on bytes that `quantize` never writes.
        """


_ALL: tuple[Codec, ...] = (FP32, FP16, INT8, INT4)

CODECS: dict[str, Codec] = {codec.name: codec for codec in _ALL}
"""Codecs by name."""

_BY_ID = {codec.id: codec for codec in _ALL}


def codec(name: str) -> Codec:
    """The codec of this name. Raises `ConfigError` when there is none."""
    if name not in CODECS:
        raise ConfigError(f"codec {name!r} does not exist: use one of {', '.join(CODECS)}")
    return CODECS[name]


def codec_of_id(number: int) -> Codec:
    """The codec with this wire id. Raises `PayloadError` when there is none."""
    if number not in _BY_ID:
        known = ", ".join(f"{codec.id} ({codec.name})" for codec in _ALL)
        raise PayloadError(f"payload uses codec {number}, known are {known}; update fedkron on this machine")
    return _BY_ID[number]
