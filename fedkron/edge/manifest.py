"""What a bundle says about itself: `manifest.json`, specified in docs/formats.md."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from fedkron.errors import BundleError, ContractError
from fedkron.layout import AdapterLayout

FORMAT, VERSION = "fedkron-bundle", 1

MANIFEST = "manifest.json"
ADAPTER = "adapter.safetensors"
TOKENIZER = "tokenizer.json"
UNMERGED, UNMERGED_WEIGHTS = "unmerged.onnx", "unmerged.bin"
MERGED_WEIGHTS = "merged.bin"


@dataclass(frozen=True)
class TaskEntry:
    """One task: its name and kind, its labels by index, and the files of its head and merged graph."""

    name: str
    kind: str
    labels: tuple[str, ...]
    head: str
    merged: str


@dataclass(frozen=True)
class Manifest:
    """The content of `manifest.json`.

    `files` has the SHA-256 (hex) of every other file by its path in the bundle. Texts are cut to
    `max_length` tokens at the side `truncation_side` and padded with `pad_id` on the right.
    """

    base_name: str
    layout: AdapterLayout
    hidden_size: int
    max_length: int
    pad_id: int
    truncation_side: str
    inputs: tuple[str, ...]
    tasks: tuple[TaskEntry, ...]
    files: dict[str, str]

    def to_json(self) -> str:
        """Readable JSON: same manifest, same bytes."""
        content = {
            "format": FORMAT,
            "version": VERSION,
            "contract": self.layout.contract,
            "base": {"name": self.base_name, "fingerprint": self.layout.base},
            "layout": json.loads(self.layout.to_json()),
            "hidden_size": self.hidden_size,
            "max_length": self.max_length,
            "pad_id": self.pad_id,
            "truncation_side": self.truncation_side,
            "inputs": list(self.inputs),
            "tasks": [
                {
                    "name": task.name,
                    "kind": task.kind,
                    "labels": list(task.labels),
                    "head": task.head,
                    "merged": task.merged,
                }
                for task in self.tasks
            ],
            "files": self.files,
        }
        return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest of a bundle.

    Raises `BundleError` when there is none, or one of another format or version, or one that is
    incomplete; `ContractError` when the contract is not that of the layout.
    """
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(f"{folder} is not a bundle: it has no {MANIFEST}") from None
    except ValueError as error:
        raise BundleError(f"{path} is not JSON ({error}): the bundle is damaged, export it again") from error
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise BundleError(f"{path} is not the manifest of a bundle: its format is {found!r}, not {FORMAT!r}")
    if content.get("version") != VERSION:
        raise BundleError(
            f"{path} has version {content.get('version')!r}, known here is {VERSION}: update fedkron on this "
            "machine, or export again with this version"
        )
    try:
        manifest = _manifest(content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"{path} is damaged ({error!r}): export the bundle again") from error
    if content.get("contract") != manifest.layout.contract:
        raise ContractError(f"{path}: the contract does not match the layout: the file was altered")
    return manifest


def verify_files(folder: Path, manifest: Manifest) -> None:
    """Raise `BundleError` unless every file of the bundle is there and unaltered."""
    for name, expected in manifest.files.items():
        if not (folder / name).is_file():
            raise BundleError(f"{folder / name} is missing: copy the whole bundle, or export it again")
        if sha256(folder / name) != expected:
            raise BundleError(
                f"{folder / name} is not what was exported (its SHA-256 differs): copy the bundle again"
            )


def sha256(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _manifest(content: dict[str, Any]) -> Manifest:
    tasks = tuple(
        TaskEntry(task["name"], task["kind"], tuple(task["labels"]), task["head"], task["merged"])
        for task in content["tasks"]
    )
    files = dict(content["files"])
    needed = {ADAPTER, TOKENIZER, UNMERGED, UNMERGED_WEIGHTS, MERGED_WEIGHTS}
    if unlisted := sorted(needed.union(*((task.head, task.merged) for task in tasks)) - files.keys()):
        raise KeyError(f"{unlisted[0]} is not among the files")
    for name in files:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name:
            raise ValueError(f"file {name!r} lies outside the bundle")
    return Manifest(
        base_name=str(content["base"]["name"]),
        layout=AdapterLayout.from_json(json.dumps(content["layout"])),
        hidden_size=int(content["hidden_size"]),
        max_length=int(content["max_length"]),
        pad_id=int(content["pad_id"]),
        truncation_side=str(content["truncation_side"]),
        inputs=tuple(content["inputs"]),
        tasks=tasks,
        files=files,
    )
