"""What a bundle says about itself: `manifest.json`, specified in docs/formats.md."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any, TypeAlias

from fedkron.edge.language_model import LanguageModelInput
from fedkron.edge.slot import SlotLayout
from fedkron.edge.texts import TextInput
from fedkron.errors import BundleError, ContractError
from fedkron.layout import AdapterLayout

if TYPE_CHECKING:  # where images are not read, Pillow is not needed
    from fedkron.edge.images import ImageInput

FORMAT, VERSION = "fedkron-bundle", 2

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
RUN = "run.py"
UNMERGED, BASE_WEIGHTS = "unmerged.onnx", "base.bin"
MERGED_WEIGHTS = "merged.bin"
ADAPTERS = "adapters"
GENERATION = "text-generation"
"""What stands for a task where a language model has none."""

Input: TypeAlias = "TextInput | ImageInput | LanguageModelInput"


@dataclass(frozen=True)
class AdapterEntry:
    """An adapter of the bundle: its name, its file, and by task its files for ONNX Runtime's own API."""

    name: str
    file: str
    onnx_adapters: Mapping[str, str]


@dataclass(frozen=True)
class Manifest:
    """The content of `manifest.json`.

    `base_form` says how the base's weights are stored, `slot` what the graph takes for an adapter, `input`
    how texts or images become inputs. `merged` has the graphs that hold the first adapter, by task, and
    `files` the SHA-256 (hex) of every other file by its path in the bundle.
    """

    base_name: str
    base_form: str
    slot: SlotLayout
    hidden_size: int
    input: Input
    merged: Mapping[str, str]
    adapters: tuple[AdapterEntry, ...]
    files: Mapping[str, str]

    @property
    def layout(self) -> AdapterLayout:
        """What an adapter has to look like."""
        return self.slot.adapter

    def to_json(self) -> str:
        """Readable JSON: same manifest, same bytes."""
        content = {
            "format": FORMAT,
            "version": VERSION,
            "contract": self.layout.contract,
            "base": {"name": self.base_name, "fingerprint": self.layout.base},
            "base_form": self.base_form,
            "layout": json.loads(self.layout.to_json()),
            "slot": {
                "encoding": self.slot.encoding,
                "groups": self.slot.groups,
                "per_row": self.slot.per_row,
            },
            "slot_hash": self.slot.hash,
            "hidden_size": self.hidden_size,
            "input": self.input.to_json(),
            "merged": [{"task": task, "file": file} for task, file in self.merged.items()],
            "adapters": [
                {"name": a.name, "file": a.file, "onnx_adapters": dict(a.onnx_adapters)}
                for a in self.adapters
            ],
            "files": dict(self.files),
        }
        return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest of a bundle.

    Raises `BundleError` when there is none, or one of another format or version, or one that is
    incomplete; `ContractError` when contract or slot hash is not that of the layout.
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
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"{path} is damaged ({error!r}): export the bundle again") from error
    for key, expected in (("contract", manifest.layout.contract), ("slot_hash", manifest.slot.hash)):
        if content.get(key) != expected:
            raise ContractError(f"{path}: {key} does not match the layout: the file was altered")
    return manifest


def verify_files(folder: Path, manifest: Manifest) -> None:
    """Raise `BundleError` unless every file of the bundle is there and unaltered."""
    for name, expected in manifest.files.items():
        if not (folder / name).is_file():
            raise BundleError(f"{folder / name} is missing: copy the whole bundle, or export it again")
        if not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise BundleError(f"{folder / name} is a link out of the bundle: copy the files themselves")
        if sha256(folder / name) != expected:
            raise BundleError(
                f"{folder / name} is not what was exported (its SHA-256 differs): copy the bundle again"
            )


def sha256(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _manifest(content: dict[str, Any]) -> Manifest:
    adapters = tuple(
        AdapterEntry(str(a["name"]), str(a["file"]), dict(a["onnx_adapters"])) for a in content["adapters"]
    )
    files = dict(content["files"])
    merged = {str(entry["task"]): str(entry["file"]) for entry in content["merged"]}
    needed = {UNMERGED, BASE_WEIGHTS, *merged.values()} | ({MERGED_WEIGHTS} if merged else set())
    needed |= {TOKENIZER} if content["input"]["kind"] != "image" else set()
    needed.update(file for a in adapters for file in (a.file, *a.onnx_adapters.values()))
    if unlisted := sorted(needed - files.keys()):
        raise KeyError(f"{unlisted[0]} is not among the files")
    for name in files:
        path = PureWindowsPath(name)  # it splits at / and \, and knows drives
        if path.anchor or ".." in path.parts or set("\\\0") & set(name):
            raise ValueError(f"file {name!r} lies outside the bundle")
    slot = content["slot"]
    groups = tuple(tuple(map(str, group)) for group in slot["groups"])
    layout = AdapterLayout.from_json(json.dumps(content["layout"]))
    return Manifest(
        base_name=str(content["base"]["name"]),
        base_form=str(content["base_form"]),
        slot=SlotLayout(layout, groups, str(slot["encoding"]), bool(slot["per_row"])),
        hidden_size=int(content["hidden_size"]),
        input=_input(content["input"]),
        merged=merged,
        adapters=adapters,
        files=files,
    )


def _input(content: dict[str, Any]) -> Input:
    match content["kind"]:
        case "text":
            return TextInput.from_json(content)
        case "language_model":
            return LanguageModelInput.from_json(content)
        case "image":
            from fedkron.edge.images import ImageInput

            return ImageInput.from_json(content)
        case unknown:
            raise ValueError(f"input of kind {unknown!r} is not known")
