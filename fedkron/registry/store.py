"""Published adapters in a storage, without a file that two publishers write.

    STORE/
        fedkron-exchange.json                says what this is; always the same bytes
        blobs/SHA256                         files, by their content
        adapters/NAME/RELEASE.json           a manifest: with it, and not before, a release is there
        adapters/NAME/RELEASE-DIGEST.json    the same where a storage cannot tell who came first

or a single publication: a folder with `publication.json` and its files, as `fedkron pull` and `fedkron push`
write it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from fedkron.errors import ExchangeError
from fedkron.registry.publication import (
    HIGHEST_RELEASE,
    LARGEST_MANIFEST,
    MANIFEST,
    PublishedFile,
    canonical,
    check_name,
)
from fedkron.registry.signature import Signed, read_signed
from fedkron.registry.storage import CannotCreate, Storage

MARKER = "fedkron-exchange.json"
MARK = canonical({"format": "fedkron-exchange", "version": 1})
BLOBS, ADAPTERS = "blobs", "adapters"
DIGITS = 16
"""Of a digest in a file's name."""

_FILE = re.compile(rf"([1-9]\d{{0,9}})(?:-([0-9a-f]{{{DIGITS}}}))?\.json")
_REFERENCE = re.compile(rf"([^@]+)(?:@(?:latest|([1-9]\d{{0,9}})(?:-([0-9a-f]{{{DIGITS}}}))?))?")


@dataclass(frozen=True, order=True)
class Release:
    """One manifest in a store: number, and the beginning of its digest where that is part of its name."""

    number: int
    digest: str = ""

    def __str__(self) -> str:
        return f"{self.number}-{self.digest}" if self.digest else str(self.number)


@dataclass(frozen=True)
class Reference:
    """What a user asks for: `NAME`, `NAME@3`, or `NAME@3-DIGEST`. Without a release: the latest."""

    name: str
    release: Release | None = None


@dataclass(frozen=True)
class Found:
    """A publication whose manifest was read and whose signature is right, and where its files are."""

    storage: Storage
    signed: Signed
    is_single: bool

    def path_of(self, file: PublishedFile) -> str:
        """Where a file lies in the storage."""
        return file.path if self.is_single else f"{BLOBS}/{file.sha256}"


def reference(text: str) -> Reference:
    """Read what a user asks for; raises `ExchangeError` when it is none of the forms."""
    match = _REFERENCE.fullmatch(text)
    if match is None:
        raise ExchangeError(f"{text!r} is not NAME, NAME@RELEASE or NAME@RELEASE-DIGEST")
    name, number, digest = match.groups()
    check_name(name)
    return Reference(name, Release(int(number), digest or "") if number else None)


def check_store(storage: Storage) -> None:
    """Raise `ExchangeError` unless this is a store of a version that is known."""
    try:
        content = storage.read(MARKER, LARGEST_MANIFEST)
    except FileNotFoundError:
        raise ExchangeError(
            f"{storage.url} is not a store of adapters: it has no {MARKER}; fedkron publish makes one"
        ) from None
    if content != MARK:
        raise ExchangeError(
            f"{storage.url}/{MARKER} is of another version, or damaged: update fedkron on this machine"
        )


def names(storage: Storage) -> list[str]:
    """Names of the adapters in a store."""
    return [name for name in storage.names(ADAPTERS) if _is_name(name)]


def releases(storage: Storage, name: str) -> list[Release]:
    """The releases of an adapter, the oldest first; what is no manifest by its name is passed over."""
    matches = (_FILE.fullmatch(file) for file in storage.names(f"{ADAPTERS}/{name}"))
    found = (Release(int(match[1]), match[2] or "") for match in matches if match)
    return sorted(release for release in found if release.number <= HIGHEST_RELEASE)


def find(storage: Storage, wanted: Reference) -> Found:
    """The publication that is asked for.

    Where two publishers have made the same release, the latest is that with the greatest digest; one that is
    asked for by its number has to be told by its digest, too. Raises `ExchangeError` when this is no
    store, it is not there, or its manifest is damaged, altered, or another one's.
    """
    check_store(storage)
    release = wanted.release or _latest(storage, wanted.name)
    try:
        return read_release(storage, wanted.name, release)
    except FileNotFoundError:
        pass
    alike = [other for other in releases(storage, wanted.name) if other.number == release.number]
    matching = [other for other in alike if release.digest in ("", other.digest)]
    if len(matching) > 1:
        raise ExchangeError(
            f"{wanted.name}@{release.number} was published twice, at the same time: say which, "
            f"{' or '.join(f'{wanted.name}@{other}' for other in matching)}"
        )
    if not matching:
        raise ExchangeError(f"{storage.url} has no {wanted.name}@{release}: fedkron list says what it has")
    return read_release(storage, wanted.name, matching[0])


def read_release(storage: Storage, name: str, release: Release) -> Found:
    """Read and check one manifest. Raises `FileNotFoundError` when it is not there."""
    path = f"{ADAPTERS}/{name}/{release}.json"
    signed = _read(storage, path)
    found = Release(signed.publication.release, signed.digest[:DIGITS] if release.digest else "")
    if (signed.publication.name, found) != (name, release):
        raise ExchangeError(
            f"{storage.url}/{path} is the manifest of {signed.publication.name}@{found}: it was moved, or "
            "put in the place of another"
        )
    return Found(storage, signed, is_single=False)


def find_single(storage: Storage) -> Found:
    """The one publication in a folder; raises `ExchangeError` when there is none, or it was altered."""
    try:
        return Found(storage, _read(storage, MANIFEST), is_single=True)
    except FileNotFoundError:
        raise ExchangeError(
            f"{storage.url} has no {MANIFEST}: of a store, say which adapter, by NAME or NAME@RELEASE"
        ) from None


def creates_exclusively(storage: Storage) -> bool:
    """Make a store of it if it is none. Says whether, of several who create a file, only one succeeds.

    Whoever creates the marker tries once more: some services overwrite what is there, without a word.
    """
    for _ in range(2):
        try:
            storage.create(MARKER, MARK)
        except FileExistsError:
            return True
        except CannotCreate:
            storage.put(MARKER, MARK)
            return False
    return False


def add(storage: Storage, name: str, signed_as: Callable[[int], Signed]) -> Signed:
    """Make a publication visible, as the release after the latest; its blobs have to be there.

    `signed_as` makes the manifest for a number: several may be tried while others publish, too.
    """
    exclusively = creates_exclusively(storage)
    check_store(storage)
    number = max((release.number for release in releases(storage, name)), default=0) + 1
    while True:
        signed = signed_as(number)
        if not exclusively:
            storage.put(f"{ADAPTERS}/{name}/{Release(number, signed.digest[:DIGITS])}.json", signed.content)
            return signed
        path = f"{ADAPTERS}/{name}/{Release(number)}.json"
        try:
            storage.create(path, signed.content)
            return signed
        except FileExistsError:
            # It may be ours: where an answer is lost on the way, client libraries send the request again.
            if storage.read(path, LARGEST_MANIFEST) == signed.content:
                return signed
            number += 1


def _latest(storage: Storage, name: str) -> Release:
    if not (found := releases(storage, name)):
        raise ExchangeError(
            f"{storage.url} has no adapter {name!r}, or cannot list what it has: fedkron list says what is "
            f"there; of a web server without listings ask for {name}@RELEASE"
        )
    return found[-1]


def _read(storage: Storage, path: str) -> Signed:
    content = storage.read(path, LARGEST_MANIFEST)
    try:
        return read_signed(content)
    except ExchangeError as error:
        raise ExchangeError(f"{storage.url}/{path}: {error}") from error


def _is_name(name: str) -> bool:
    try:
        check_name(name)
    except ExchangeError:
        return False
    return True
