"""Pull a published adapter: into a folder, into a bundle, or to a running service.

Everything is checked in a temporary folder before anything of the target changes, and the target changes in
one step. What it came from is noted down beside it, so that no older release takes its place unasked.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fedkron.atomic import replaced_folder, write_atomically
from fedkron.edge.bundle_adapters import add_device_adapter, check_can_add, file_stem, record_of
from fedkron.edge.device_adapter import DeviceAdapter, check_fits, device_adapter, save_device_adapter
from fedkron.edge.heads import head_file
from fedkron.edge.manifest import Manifest, read_manifest, verify_files
from fedkron.edge.store import DEFAULT, AdapterStore
from fedkron.errors import ContractError, ExchangeError
from fedkron.exchange import HeadFile
from fedkron.registry.fetch import Fetched, fetch
from fedkron.registry.publication import MANIFEST, PublishedFile, device_path
from fedkron.registry.signature import Signed, read_signed
from fedkron.registry.store import Found

RECORD = ".publication.json"
"""Ending of the manifest that is kept beside an adapter of a service."""


@dataclass(frozen=True)
class Order:
    """What is pulled, and whether the user has named exactly this release."""

    found: Found
    is_exact: bool

    @property
    def signed(self) -> Signed:
        """Its manifest."""
        return self.found.signed


def pull_to_folder(order: Order, folder: Path) -> Path:
    """All files, with the manifest, in a folder that appears whole, or takes the place of an older pull.

    Raises `ExchangeError`, changing nothing, when something is wrong with the publication, the folder has
    other things in it, or a newer release.
    """
    _check_replaceable(order, folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with replaced_folder(folder) as fresh:
        fetch(order.found, order.signed.publication.files, fresh)
        (fresh / MANIFEST).write_bytes(order.signed.content)
    return folder


def pull_into_bundle(order: Order, bundle: Path, name: str, heads: Sequence[HeadFile]) -> Path:
    """Add the adapter to a bundle under a name; returns its file.

    `heads` go before those that were published, and these before those of the bundle's first adapter. Raises
    `ExchangeError`, `ContractError` or `BundleError`, changing nothing, when something is wrong with the
    publication, or it does not fit.
    """
    manifest = read_manifest(bundle)
    verify_files(bundle, manifest)
    _check_contract(order.signed, manifest)
    check_can_add(manifest, name)
    _check_not_older(order, record_of(bundle, manifest, name), f"adapter {name!r} of {bundle}")
    packed = _device_adapter(order, bundle, manifest, name, heads)
    entry = add_device_adapter(bundle, packed, order.signed.content)
    return bundle / entry.file


def pull_for_service(order: Order, bundle: Path, folder: Path, name: str, heads: Sequence[HeadFile]) -> Path:
    """Write the adapter, encoded for a bundle, to the folder that its `fedkron serve --adapters` follows.

    Raises like `pull_into_bundle`.
    """
    manifest = read_manifest(bundle)
    _check_contract(order.signed, manifest)
    if not folder.is_dir():
        raise ExchangeError(f"{folder} is not a folder: give the one that fedkron serve follows")
    if file_stem(name) != name or name.startswith("."):
        raise ExchangeError(f"{name!r} is not a name of a file: choose another with --name")
    record = folder / f"{name}{RECORD}"
    previous = record.read_bytes() if record.exists() else None
    _check_not_older(order, previous, f"{name}.safetensors in {folder}")
    packed = _device_adapter(order, bundle, manifest, name, heads)
    path = folder / f"{name}.safetensors"
    save_device_adapter(path, packed)
    write_atomically(record, order.signed.content)
    return path


def _device_adapter(
    order: Order, bundle: Path, manifest: Manifest, name: str, own_heads: Sequence[HeadFile]
) -> DeviceAdapter:
    """The adapter in the bundle's encoding, with a head for each task that the bundle was exported with.

    Fetched like that where it was published with all those heads, otherwise encoded here.
    """
    publication = order.signed.publication
    default_heads = {head.task: head for head in _default_heads(bundle, manifest)}
    for file in publication.of_role("device"):
        if file.path == device_path(manifest.slot.hash) and not own_heads:
            (packed,) = _fetched(order, [file]).devices
            check_fits(packed, manifest.slot, manifest.hidden_size)
            if default_heads.keys() <= packed.tasks.keys():
                return replace(packed, name=name)
    fetched = _fetched(order, [*publication.of_role("adapter"), *publication.of_role("head")])
    assert fetched.adapter is not None
    heads = default_heads | {head.task: head for head in (*fetched.heads, *own_heads)}
    return device_adapter(name, fetched.adapter, list(heads.values()), manifest.slot, manifest.hidden_size)


def _fetched(order: Order, files: Sequence[PublishedFile]) -> Fetched:
    with tempfile.TemporaryDirectory() as folder:
        return fetch(order.found, files, Path(folder))


def _default_heads(bundle: Path, manifest: Manifest) -> list[HeadFile]:
    """The heads that the bundle was exported with, as a service takes them for an adapter without."""
    store = AdapterStore(manifest.slot, manifest.hidden_size)
    entry = next((entry for entry in manifest.adapters if entry.name == DEFAULT), None)
    if entry is None:
        return []
    store.load(bundle / entry.file, DEFAULT)
    return [head_file(head, manifest.layout.contract) for head in store[DEFAULT].heads]


def _check_contract(signed: Signed, manifest: Manifest) -> None:
    publication, contract = signed.publication, manifest.layout.contract
    if publication.contract == contract:
        return
    what = "settings"
    if publication.base.fingerprint != manifest.layout.base:
        what = f"base ({publication.base.name}, the bundle's is {manifest.base_name})"
    raise ContractError(
        f"{publication.name}@{publication.release} has contract {publication.contract[:12]}…, the bundle "
        f"{contract[:12]}…: it was trained with another {what}"
    )


def _check_replaceable(order: Order, folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ExchangeError(f"{folder} is a file: give a folder")
    held = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if not held:
        return
    if MANIFEST not in held:
        raise ExchangeError(f"{folder} holds other things ({min(held)}): give another folder")
    previous = (folder / MANIFEST).read_bytes()
    _check_not_older(order, previous, str(folder))
    known = {file.path for file in read_signed(previous).publication.files} | {MANIFEST}
    if others := sorted(held - known):
        raise ExchangeError(f"{folder} holds {others[0]}, which was not pulled: give another folder")


def _check_not_older(order: Order, previous: bytes | None, where: str) -> None:
    """Raise `ExchangeError` where something would be replaced by an older release, or another adapter."""
    if previous is None:
        return
    there, new = read_signed(previous).publication, order.signed.publication
    if there.name != new.name:
        raise ExchangeError(
            f"{where} is {there.name}@{there.release}, not a release of {new.name}: choose another"
        )
    if there.release > new.release and not order.is_exact:
        raise ExchangeError(
            f"{where} is {there.name}@{there.release}, and the latest on offer is {new.release}: something "
            f"was taken back. If you want it all the same, say {new.name}@{new.release}"
        )
