"""The codecs that exist. A new one is a file with its class, and a line in `FAMILIES`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from numpy.random import Generator

from fedkron.compression import ecsq
from fedkron.compression.blockwise import (
    INT4,
    INT4_CHANNEL,
    INT4_STOCHASTIC,
    INT8,
    INT8_CHANNEL,
    INT8_STOCHASTIC,
)
from fedkron.compression.floating import FP16, FP32
from fedkron.compression.sign import SIGN
from fedkron.errors import ConfigError, UnknownCodecError
from fedkron.layout import TensorLayout, Vector


class Codec(Protocol):
    """How one section of a vector becomes a body of a payload, and back. Stateless."""

    @property
    def name(self) -> str:
        """What a run config calls it."""

    @property
    def id(self) -> int:
        """What the wire calls its body, 0..255: never given to another one."""

    @property
    def state_codec(self) -> str:
        """Name of the codec for a whole state, where this one is used for changes of it.

        A change that is sent coarsely is completed by the next ones. A model that starts from a coarse
        state has nothing to go by.
        """

    def sizes(self, tensors: tuple[TensorLayout, ...]) -> range:
        """The sizes in bytes that a body can have; one only where the content does not change it."""

    def quantize(self, vector: Vector, tensors: tuple[TensorLayout, ...], rng: Generator) -> bytes:
        """Body of a finite vector of these tensors: same input (and state of `rng`), same bytes."""

    def dequantize(self, body: memoryview, tensors: tuple[TensorLayout, ...]) -> Vector:
        """The vector in a body whose length is in `sizes(tensors)`: new and finite.

        Raises `PayloadError` on bytes that `quantize` never writes, before it allocates more than a few
        times the vector.
        """


@dataclass(frozen=True)
class Family:
    """Codecs that share the name in front of the colon; `codec` makes one of what comes behind it."""

    usage: str
    codec: Callable[[str], Codec]


def _fixed(**codecs: Codec) -> Family:
    options: Mapping[str, Codec] = {codec.name.partition(":")[2]: codec for codec in codecs.values()}
    usage = ", ".join(codec.name for codec in codecs.values())

    def choose(option: str) -> Codec:
        if option not in options:
            wanted = f"{codecs['plain'].name}:{option}"
            raise ConfigError(f"codec {wanted!r} does not exist: use {usage}")
        return options[option]

    return Family(usage, choose)


FAMILIES: dict[str, Family] = {
    "fp32": _fixed(plain=FP32),
    "fp16": _fixed(plain=FP16),
    "int8": _fixed(plain=INT8, channel=INT8_CHANNEL, stochastic=INT8_STOCHASTIC),
    "int4": _fixed(plain=INT4, channel=INT4_CHANNEL, stochastic=INT4_STOCHASTIC),
    "ecsq": Family(ecsq.USAGE, ecsq.ecsq),
    "sign": _fixed(plain=SIGN),
}
"""Codec families by name."""

_BODIES: dict[int, Codec] = {
    codec.id: codec for codec in (FP32, FP16, INT8, INT4, INT8_CHANNEL, INT4_CHANNEL, ecsq.ecsq(""), SIGN)
}


@lru_cache(maxsize=64)
def codec(name: str) -> Codec:
    """The codec of this name, `FAMILY` or `FAMILY:OPTION`. Raises `ConfigError` when there is none."""
    family, _, option = name.partition(":")
    if family not in FAMILIES or name.endswith(":"):
        known = "; ".join(family.usage for family in FAMILIES.values())
        raise ConfigError(f"codec {name!r} does not exist: use one of {known}")
    return FAMILIES[family].codec(option)


def codec_of_id(number: int) -> Codec:
    """A codec that can decode bodies with this wire id. Raises `UnknownCodecError` when there is none."""
    if number not in _BODIES:
        known = ", ".join(f"{codec.id} ({codec.name})" for codec in _BODIES.values())
        raise UnknownCodecError(
            f"payload uses codec {number}, known are {known}; update fedkron on this machine"
        )
    return _BODIES[number]
