"""What the files of a bundle weigh, by what they are for."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

PARTS = (
    "graph with slot",
    "base weights",
    "adapter",
    "adapter for ONNX Runtime",
    "merged",
    "tokenizer",
    "rest",
)


def sizes(bundle: Path) -> dict[str, int]:
    """Bytes of each part; `rest` is the manifest and run.py."""
    found = Counter(dict.fromkeys(PARTS, 0))
    for path in bundle.rglob("*"):
        if path.is_file():
            found[_part(path.relative_to(bundle))] += path.stat().st_size
    return dict(found)


def _part(path: Path) -> str:
    match path.parts:
        case ("unmerged.onnx",):
            return "graph with slot"
        case ("base.bin",):
            return "base weights"
        case ("tokenizer.json",):
            return "tokenizer"
        case ("adapters", _):
            return "adapter for ONNX Runtime" if path.suffix == ".onnx_adapter" else "adapter"
        case (name,) if name.startswith("merged"):
            return "merged"
        case _:
            return "rest"
