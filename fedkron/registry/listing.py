"""What a store has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fedkron.errors import ExchangeError
from fedkron.registry.signature import Signed
from fedkron.registry.storage import Storage
from fedkron.registry.store import Release, check_store, names, read_release, releases


@dataclass(frozen=True)
class Listed:
    """One release: its manifest, or what is wrong with it."""

    name: str
    release: Release
    signed: Signed | None
    problem: str = ""


@dataclass(frozen=True)
class Filter:
    """Which releases are meant; empty texts mean all. `base` is part of a name, or of a fingerprint's
    beginning, `contract` the beginning of a contract.
    """

    task: str = ""
    base: str = ""
    contract: str = ""

    def takes(self, signed: Signed) -> bool:
        """Whether a publication is one of those."""
        publication = signed.publication
        base = publication.base
        return (
            (not self.task or self.task in publication.tasks)
            and (self.base in base.name or base.fingerprint.startswith(self.base))
            and publication.contract.startswith(self.contract)
        )


def listed(storage: Storage, wanted: Filter, *, all_releases: bool) -> Iterator[Listed]:
    """The releases in a store, by name and number: of each adapter the latest, or all.

    A manifest that is damaged or altered is listed with its problem, whatever is wanted. Raises
    `ExchangeError` when this is no store.
    """
    check_store(storage)
    for name in names(storage):
        found = releases(storage, name)
        for release in found if all_releases else found[-1:]:
            try:
                signed = read_release(storage, name, release).signed
            except ExchangeError as error:
                yield Listed(name, release, None, str(error))
            except FileNotFoundError:  # removed meanwhile
                continue
            else:
                if wanted.takes(signed):
                    yield Listed(name, release, signed)
