"""Snapshots: what a program needs to go on where it stopped, as one safetensors file that is there or not.

A snapshot is a tree of plain values, bytes and arrays. Arrays and bytes become tensors; the tree, with their
places in it, is JSON in the file's metadata. There is no pickle in it, and reading it runs no code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, deserialize
from safetensors.numpy import load, save

from fedkron.atomic import write_atomically
from fedkron.errors import SnapshotError
from fedkron.exchange.files import METADATA_KEY

SNAPSHOT_FORMAT, SNAPSHOT_VERSION = "fedkron-snapshot", 1

Tree = Any
"""None, bool, int, float (finite), str, bytes, np.ndarray, a list of trees, or a dict of trees by str."""


def save_snapshot(path: Path, tree: Mapping[str, Tree]) -> str:
    """Write a snapshot atomically: same tree, same bytes. Returns the file's SHA-256 in hex.

    Raises `SnapshotError`, writing nothing, when the tree holds anything else than a snapshot may.
    """
    tensors: dict[str, np.ndarray] = {}
    content = _encoded(dict(tree), tensors, "")
    metadata = {
        "format": SNAPSHOT_FORMAT,
        "version": SNAPSHOT_VERSION,
        "sha256": _digest(content, tensors),
        "tree": content,
    }
    text = json.dumps(metadata, separators=(",", ":"), allow_nan=False)
    blob = save(tensors, {METADATA_KEY: text})
    write_atomically(path, blob)
    return hashlib.sha256(blob).hexdigest()


def load_snapshot(path: Path) -> dict[str, Tree]:
    """Inverse of `save_snapshot`. Raises `SnapshotError` when it is missing, damaged or of another format."""
    try:
        blob = path.read_bytes()
    except OSError as error:
        raise SnapshotError(f"no snapshot at {path}: {error.strerror}") from None
    try:
        metadata = _metadata(blob)
        if metadata.get("format") != SNAPSHOT_FORMAT:
            raise SnapshotError(
                f"{path} is not a snapshot: its format is {metadata.get('format')!r}, not {SNAPSHOT_FORMAT!r}"
            )
        if metadata["version"] != SNAPSHOT_VERSION:
            raise SnapshotError(
                f"{path} has snapshot version {metadata['version']}, known here is {SNAPSHOT_VERSION}: "
                "update fedkron"
            )
        tensors = load(blob)
        if _digest(metadata["tree"], tensors) != metadata["sha256"]:
            raise SnapshotError(f"{path} was damaged: this snapshot had another checksum when it was written")
        tree = _decoded(metadata["tree"], tensors)
    except SnapshotError:
        raise
    except (SafetensorError, LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise SnapshotError(f"{path} is damaged, or not a snapshot: {error!r}") from error
    assert isinstance(tree, dict)
    return tree


def _metadata(blob: bytes) -> dict[str, Any]:
    deserialize(blob)  # type: ignore[no-untyped-call]  # its own checks: lengths, offsets, no gaps
    length = int.from_bytes(blob[:8], "little")
    header = json.loads(blob[8 : 8 + length])
    metadata: dict[str, Any] = json.loads(header["__metadata__"][METADATA_KEY])
    return metadata


def _digest(content: object, tensors: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(json.dumps(content, separators=(",", ":")).encode())
    for name in sorted(tensors):
        values = tensors[name]
        digest.update(f"{name}:{values.dtype.str}:{list(values.shape)}:".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def _encoded(tree: Tree, tensors: dict[str, np.ndarray], place: str) -> object:
    """The JSON for a tree; its arrays and bytes go to `tensors`."""
    match tree:
        case None | bool() | str():
            return tree
        case int() | float():
            if not np.isfinite(tree):
                raise SnapshotError(f"{place or 'the snapshot'} is {tree}: only finite numbers can be kept")
            return tree
        case list() | tuple():
            return [_encoded(item, tensors, f"{place}[{i}]") for i, item in enumerate(tree)]
        case bytes():
            return {"bytes": _kept(np.frombuffer(tree, np.uint8), tensors)}
        case np.ndarray() if tree.dtype.kind in "fiu":
            return {"array": _kept(np.asarray(tree, order="C"), tensors)}
        case dict() if all(isinstance(key, str) for key in tree):
            return {"map": [[key, _encoded(item, tensors, f"{place}.{key}")] for key, item in tree.items()]}
    raise SnapshotError(f"{place or 'the snapshot'} is {type(tree).__name__}: a snapshot cannot hold that")


def _kept(values: np.ndarray, tensors: dict[str, np.ndarray]) -> str:
    name = str(len(tensors))
    tensors[name] = values
    return name


def _decoded(content: Any, tensors: Mapping[str, np.ndarray]) -> Tree:  # noqa: ANN401
    match content:
        case list():
            return [_decoded(item, tensors) for item in content]
        case {"bytes": str(name)}:
            return tensors[name].tobytes()
        case {"array": str(name)}:
            return tensors[name]
        case {"map": list(items)}:
            return {str(key): _decoded(item, tensors) for key, item in items}
        case dict():
            raise SnapshotError(f"a snapshot has no {sorted(content)}")
    return content
