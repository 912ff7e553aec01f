"""What is compared: no privacy, noise by the server, noise by the nodes, and codecs under the same noise."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fedkron.settings import (
    ADAPTIVE_CLIPPING,
    CENTRAL_PRIVACY,
    FIXED_CLIPPING,
    LOCAL_PRIVACY,
    NO_PRIVACY,
)

ECSQ = "ecsq"
"""The default codec of uploads."""


@dataclass(frozen=True)
class Way:
    """How privacy is kept; `noise` is the noise multiplier, `upload` the codec of uploads."""

    kind: str = NO_PRIVACY
    noise: float = 0.0
    clipping: str = FIXED_CLIPPING
    upload: str = ECSQ

    @property
    def name(self) -> str:
        """In words, without the noise."""
        clipping = ", adaptive" if self.clipping == ADAPTIVE_CLIPPING else ""
        upload = "" if self.upload == ECSQ else f", {self.upload}"
        return f"{self.kind}{clipping}{upload}"


NONE = Way()
CLIPPED = Way(CENTRAL_PRIVACY)
"""Clipping only, which is the same wherever it is done."""

CENTRAL = tuple(Way(CENTRAL_PRIVACY, noise) for noise in (0.5, 1.0, 2.0, 4.0))
LOCAL = tuple(Way(LOCAL_PRIVACY, noise) for noise in (0.02, 0.1, 0.5, 2.0))
ADAPTIVE = Way(CENTRAL_PRIVACY, 1.0, ADAPTIVE_CLIPPING)
CODECS = tuple(replace(way, upload=upload) for way in (CENTRAL[1], LOCAL[1]) for upload in ("int4", "fp32"))

WAYS = (NONE, CLIPPED, *CENTRAL, ADAPTIVE, *LOCAL, *CODECS)
