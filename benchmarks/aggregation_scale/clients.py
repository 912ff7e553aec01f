"""What the clients send: a few different payloads, which they send in turn. Without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedkron.compression import codec
from fedkron.compression.payload import encode_vector
from fedkron.layout import AdapterLayout

DIFFERENT = 16
"""Payloads that are made; client k sends the (k mod 16)-th."""

UPDATE_SIZE = 0.003
"""Root mean square of an update, as AdamW makes them with a learning rate of 3e-4."""


def payloads(layout: AdapterLayout, name: str) -> list[bytes]:
    """Different Gaussian updates, encoded."""
    rng = np.random.default_rng(0)
    updates = (
        np.float32(UPDATE_SIZE) * rng.standard_normal(layout.size, np.float32) for _ in range(DIFFERENT)
    )
    return [encode_vector(update, layout, codec(name), round=1) for update in updates]


def weight(client: int) -> float:
    """Number of examples of a client: all of 1 to 100."""
    return 1.0 + client * 37 % 100


def save(folder: Path, layout: AdapterLayout, blobs: Sequence[bytes]) -> None:
    """Write a layout and payloads into a new folder."""
    folder.mkdir()
    (folder / "layout.json").write_text(layout.to_json(), encoding="utf-8")
    for number, blob in enumerate(blobs):
        (folder / f"{number:03d}.payload").write_bytes(blob)


def load(folder: Path) -> tuple[AdapterLayout, list[bytes]]:
    """What `save` wrote."""
    layout = AdapterLayout.from_json((folder / "layout.json").read_text(encoding="utf-8"))
    return layout, [path.read_bytes() for path in sorted(folder.glob("*.payload"))]
