"""Fetch the files of a publication to a place of their own, and check all there is to check."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fedkron.edge.device_adapter import DeviceAdapter, read_device_adapter
from fedkron.errors import ExchangeError, FedKronError
from fedkron.exchange import AdapterFile, HeadFile, load_adapter, load_head, load_terms
from fedkron.exchange.terms import TERMS_DIGEST
from fedkron.registry.publication import Publication, PublishedFile
from fedkron.registry.store import Found


@dataclass(frozen=True)
class Fetched:
    """What was fetched, checked and read; the parts that were not asked for are empty."""

    adapter: AdapterFile | None
    heads: tuple[HeadFile, ...]
    devices: tuple[DeviceAdapter, ...]


def fetch(found: Found, files: Iterable[PublishedFile], folder: Path) -> Fetched:
    """Write files of a publication to a folder that nobody looks into yet.

    No more bytes are read than the manifest says. Raises `ExchangeError` when a file is missing, has another
    size or hash, or is not what the manifest says it is: an adapter of this contract and base, with its heads
    and terms.
    """
    wanted = list(files)
    for file in wanted:
        _fetch(found, file, folder / file.path)
    try:
        return _read(found.signed.publication, wanted, folder)
    except ExchangeError:
        raise
    except FedKronError as error:
        # Its message names a file in a folder that will be gone.
        problem = str(error).replace(f"{folder}/", "")
        raise ExchangeError(f"{_name(found.signed.publication)}: {problem}") from error


def _fetch(found: Found, file: PublishedFile, target: Path) -> None:
    where = f"{found.storage.url}/{found.path_of(file)} ({file.path})"
    digest, size = hashlib.sha256(), 0
    try:
        with target.open("xb") as stream:
            for piece in found.storage.pieces(found.path_of(file)):
                size += len(piece)
                if size > file.size:
                    raise ExchangeError(f"{where} has more than the {file.size} bytes that it should have")
                digest.update(piece)
                stream.write(piece)
            stream.flush()
            os.fsync(stream.fileno())
    except FileNotFoundError:
        raise ExchangeError(f"{where} is missing: the store is damaged, publish it again") from None
    if size < file.size:
        raise ExchangeError(f"{where} has {size} bytes, it should have {file.size}: it is damaged")
    if digest.hexdigest() != file.sha256:
        raise ExchangeError(f"{where} is not what was published (its SHA-256 differs): it was altered")


def _read(publication: Publication, files: Iterable[PublishedFile], folder: Path) -> Fetched:
    adapter: AdapterFile | None = None
    heads, devices = [], []
    for file in files:
        match file.role:
            case "adapter":
                adapter = load_adapter(folder / file.path)
                _check_adapter(publication, adapter)
            case "head":
                heads.append(load_head(folder / file.path))
            case "device":
                devices.append(read_device_adapter(folder / file.path))
                _check(devices[-1].contract == publication.contract, publication, file.path, "contract")
            case "terms":
                load_terms(folder / file.path)
            case "card":
                (folder / file.path).read_bytes().decode(errors="strict")
    if adapter is not None:
        _check_heads(publication, adapter, heads)
    return Fetched(adapter, tuple(heads), tuple(devices))


def _check_adapter(publication: Publication, adapter: AdapterFile) -> None:
    layout = adapter.layout
    _check(layout.contract == publication.contract, publication, "the adapter", "contract")
    _check(layout.base == publication.base.fingerprint, publication, "the adapter", "base")
    _check(adapter.base_name == publication.base.name, publication, "the adapter", "name of the base")
    terms = [file.sha256 for file in publication.of_role("terms")]
    needed = [adapter.info[TERMS_DIGEST]] if TERMS_DIGEST in adapter.info else []
    _check(terms == needed, publication, "the adapter", "terms")


def _check_heads(publication: Publication, adapter: AdapterFile, heads: Iterable[HeadFile]) -> None:
    for head in heads:
        fits = head.contract in adapter.head_contracts
        _check(fits, publication, f"the head of task {head.task!r}", "contract")


def _check(fits: bool, publication: Publication, what: str, of: str) -> None:
    if not fits:
        raise ExchangeError(f"{_name(publication)}: {what} has another {of} than the manifest says")


def _name(publication: Publication) -> str:
    return f"{publication.name}@{publication.release}"
