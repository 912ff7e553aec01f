"""The adapters of a bundle: written with it, or added to it later; neither torch nor onnx is needed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fedkron.edge.device_adapter import DeviceAdapter, device_adapter, save_device_adapter
from fedkron.edge.manifest import (
    ADAPTERS,
    GENERATION,
    MANIFEST,
    AdapterEntry,
    Manifest,
    read_manifest,
    sha256,
    verify_files,
)
from fedkron.edge.onnx_adapter import save_onnx_adapter
from fedkron.edge.store import DEFAULT
from fedkron.errors import BundleError
from fedkron.exchange import AdapterFile, HeadFile, write_atomically


def add_to_bundle(bundle: Path, name: str, adapter: AdapterFile, heads: Sequence[HeadFile]) -> AdapterEntry:
    """Add an adapter with its tasks' heads to a bundle, in place of the one of this name if there is one.

    The manifest is replaced last, at once. Raises, and changes nothing then: `BundleError` for a bundle that
    is damaged, a name that is taken by the adapter of the export or would share its files with another, two
    heads for one task or none for an adapter that classifies; `ContractError` when adapter, heads and bundle
    do not belong together; `AdapterError` for a state that does not fit.
    """
    manifest = read_manifest(bundle)
    check_can_add(manifest, name)
    return add_device_adapter(
        bundle, device_adapter(name, adapter, heads, manifest.slot, manifest.hidden_size)
    )


def check_can_add(manifest: Manifest, name: str) -> None:
    """Raise `BundleError` for the name of the adapter that a bundle was exported with."""
    if name == DEFAULT and any(entry.name == DEFAULT for entry in manifest.adapters):
        raise BundleError(f"adapter {DEFAULT!r} is that of the export: choose another name")


def add_device_adapter(bundle: Path, packed: DeviceAdapter, record: bytes = b"") -> AdapterEntry:
    """Add an adapter that is encoded for the bundle's slot already, like `add_to_bundle`.

    `record` says where it came from, and is kept beside it. Raises, and changes nothing then, `BundleError`
    like `add_to_bundle`.
    """
    manifest, name = read_manifest(bundle), packed.name
    verify_files(bundle, manifest)
    check_can_add(manifest, name)
    others = [entry for entry in manifest.adapters if entry.name != name]
    if not packed.heads and GENERATION not in manifest.adapters[0].onnx_adapters:
        raise BundleError("there is no head: an adapter without one answers nothing, give one per task")
    check_file_names(list(packed.tasks))
    taken = {file for other in others for file in (other.file, *other.onnx_adapters.values())}
    entry = _files(packed)
    if any(entry.file == old.file for old in manifest.adapters):
        # Whoever opens the bundle before the manifest is replaced still finds what it lists.
        entry = _files(packed, f"-{packed.checksum[:8]}")
    if shared := sorted(taken.intersection((entry.file, *entry.onnx_adapters.values()))):
        raise BundleError(f"adapter {name!r} would share {shared[0]} with another one: choose another name")
    _write(bundle, packed, entry)
    new = [entry.file, *entry.onnx_adapters.values()]
    if record:
        write_atomically(bundle / _record(entry), record)
        new.append(_record(entry))
    written = {file: sha256(bundle / file) for file in new}
    replaced = [old for old in manifest.adapters if old.name == name]
    gone = {file for old in replaced for file in (old.file, *old.onnx_adapters.values(), _record(old))}
    gone &= manifest.files.keys()
    files = {file: digest for file, digest in manifest.files.items() if file not in gone} | written
    changed = replace(manifest, adapters=(*others, entry), files=dict(sorted(files.items())))
    write_manifest(bundle, changed)
    for file in gone - written.keys():
        (bundle / file).unlink()
    return entry


def record_of(bundle: Path, manifest: Manifest, name: str) -> bytes | None:
    """Where the adapter of this name came from, as noted when it was added; None where it was not noted."""
    for entry in manifest.adapters:
        if entry.name == name and _record(entry) in manifest.files:
            return (bundle / _record(entry)).read_bytes()
    return None


def _record(entry: AdapterEntry) -> str:
    return f"{entry.file.removesuffix('.safetensors')}.publication.json"


def check_file_names(tasks: Sequence[str]) -> None:
    """Raise `BundleError` when two tasks would share a file name."""
    if len({file_stem(task) for task in tasks}) < len(tasks):
        raise BundleError(f"tasks {', '.join(map(repr, tasks))} would share a file name: rename one")


def file_stem(name: str) -> str:
    """A name as it may stand in a file name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)


def write_adapter(folder: Path, adapter: DeviceAdapter) -> AdapterEntry:
    """Write an adapter's files: its own, and one per task for ONNX Runtime's API."""
    entry = _files(adapter)
    _write(folder, adapter, entry)
    return entry


def _write(folder: Path, adapter: DeviceAdapter, entry: AdapterEntry) -> None:
    save_device_adapter(folder / entry.file, adapter)
    for task, name in entry.onnx_adapters.items():
        save_onnx_adapter(folder / name, adapter, task)


def _files(adapter: DeviceAdapter, version: str = "") -> AdapterEntry:
    path = f"{ADAPTERS}/{file_stem(adapter.name)}{version}"
    tasks = adapter.tasks or [GENERATION]
    onnx_adapters = {task: f"{path}.{file_stem(task)}.onnx_adapter" for task in tasks}
    return AdapterEntry(adapter.name, f"{path}.safetensors", onnx_adapters)


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file, by its path in the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256(path) for path in files}


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json`, the last file of a bundle, atomically."""
    write_atomically(folder / MANIFEST, manifest.to_json().encode())
