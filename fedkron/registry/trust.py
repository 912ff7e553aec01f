"""Whose publications are believed: keys that the user gives, or has noted down by name of adapter."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from fedkron.atomic import write_atomically
from fedkron.audit.keys import read_public_key
from fedkron.errors import AuditError, ExchangeError
from fedkron.registry.publication import Publication, check_name

KNOWN_VARIABLE = "FEDKRON_KNOWN_PUBLISHERS"
"""Environment variable with the file of known publishers."""
ALL = "*"
"""Stands for every name of an adapter."""

_KEY = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Trusted:
    """A public key (Ed25519, 32 bytes in hex) that is trusted for adapters of a name, or `ALL`."""

    key: str
    name: str


def known_publishers() -> Path:
    """The file with those that the user trusts, which need not be there."""
    default = "~/.config/fedkron/known-publishers"
    return Path(os.environ.get(KNOWN_VARIABLE) or default).expanduser()


def read_trust(source: str) -> list[Trusted]:
    """Keys from what a user gives: 64 hex digits, a public key in PEM, or a file of known publishers.

    Raises `ExchangeError` when it is none of them.
    """
    if _KEY.fullmatch(source.lower()):
        return [Trusted(source.lower(), ALL)]
    path = Path(source)
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ExchangeError(
            f"{source} is neither a public key in hex nor a file of keys ({error})"
        ) from error
    if "-----BEGIN" not in content:
        return read_known(path)
    try:
        return [Trusted(read_public_key(path).public_bytes_raw().hex(), ALL)]
    except AuditError as error:
        raise ExchangeError(str(error)) from error


def read_known(path: Path) -> list[Trusted]:
    """The lines `KEY NAME [NAME …]` of a file of known publishers; `#` begins a comment, `*` is any name.

    None where there is no file. Raises `ExchangeError` for other lines.
    """
    if not path.exists():
        return []
    trusted = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        key, *names = line.partition("#")[0].split() or [""]
        if not key:
            continue
        if not _KEY.fullmatch(key) or not names:
            raise ExchangeError(f"{path} line {number} is not KEY NAME …, with the key in 64 hex digits")
        for name in names:
            if name != ALL:
                check_name(name)
        trusted += [Trusted(key, name) for name in names]
    return trusted


def is_trusted(publication: Publication, trusted: Sequence[Trusted]) -> bool:
    """Whether one of these is its publisher, for its name.

    Raises `ExchangeError` where others are known for this name, and not this one.
    """
    keys = {known.key for known in trusted if known.name in (ALL, publication.name)}
    named = {known.key for known in trusted if known.name == publication.name}
    if publication.public_key in keys:
        return True
    if named:
        raise ExchangeError(
            f"{publication.name!r} is signed with key {publication.public_key}, but known for it is "
            f"{', '.join(sorted(named))}: if its publisher has a new key, and told you so another way, "
            f"correct {known_publishers()}"
        )
    return False


def check_trusted(publication: Publication, trusted: Sequence[Trusted]) -> None:
    """Raise `ExchangeError` unless one of these is its publisher."""
    if not is_trusted(publication, trusted):
        raise ExchangeError(
            f"{publication.name!r} is signed with key {publication.public_key}, which is not trusted here: "
            "ask its publisher for the key another way and give it with --trust KEY, or believe what you are "
            "offered with --trust-first-use"
        )


def remember(publication: Publication, path: Path) -> None:
    """Note that its key is trusted for its name from now on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f"{path.name}.lock")):
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        if before and not before.endswith("\n"):
            before += "\n"
        write_atomically(path, f"{before}{publication.public_key} {publication.name}\n".encode())
