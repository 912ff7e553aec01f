"""Lines of an audit log (docs/formats.md): canonical JSON, signed, with the hash of the line before."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

from cryptography.exceptions import InvalidSignature

from fedkron.audit.keys import PublicKey, SigningKey
from fedkron.errors import AuditError

VERSION = 1
HEAD_FORMAT = "fedkron-audit-head"
NOTHING = "0" * 64
"""What the first line names as the one before it."""

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"

_KEYS = {"version", "number", "time", "event", "fields", "previous", "signature"}
_EVENT = re.compile(r"[a-z][a-z0-9_-]{0,63}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_SIGNATURE = re.compile(r"[0-9a-f]{128}")


@dataclass(frozen=True)
class Head:
    """How many entries a log has, and the SHA-256 (hex) of the last line (64 zeros where there is none)."""

    entries: int
    digest: str

    def __str__(self) -> str:
        return f"{self.entries}:{self.digest}"


@dataclass(frozen=True)
class Entry:
    """One line: the `number`-th event (from 1), its time by the server's clock, and what it was.

    `digest` is the SHA-256 (hex) of the line.
    """

    number: int
    time: str
    event: str
    fields: Mapping[str, Any]
    digest: str

    @property
    def head(self) -> Head:
        """The log's head as of this entry."""
        return Head(self.number, self.digest)


EMPTY = Head(0, NOTHING)


def canonical(content: Json) -> bytes:
    """JSON with sorted keys, no spaces, UTF-8; raises `AuditError` for what JSON cannot hold exactly."""
    try:
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        # A tuple or a key that is a number would come back as something else.
        if not _same(json.loads(text), content):
            raise TypeError("not everything in it is plain JSON")
        return text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise AuditError(f"{content!r:.200} cannot stand in an audit log: {error}") from error


def new_line(head: Head, event: str, fields: Mapping[str, Json], key: SigningKey) -> bytes:
    """The line (without line feed) that follows `head`.

    Raises `AuditError` for an event whose name is not one, and for fields that are not plain JSON.
    """
    if not _EVENT.fullmatch(event):
        raise AuditError(f"event {event!r} has no proper name: it must match {_EVENT.pattern}")
    unsigned: dict[str, Json] = {
        "version": VERSION,
        "number": head.entries + 1,
        "time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "event": event,
        "fields": dict(fields),
        "previous": head.digest,
    }
    return _signed(unsigned, key)


def read_lines(content: bytes, public_key: PublicKey, name: str) -> Iterator[Entry]:
    """The entries in complete lines, each checked before it is given: form, number, chain, signature.

    `name` is the file's, for messages. Raises `AuditError` that names the first line that is wrong.
    """
    head = EMPTY
    for line in content.split(b"\n")[:-1]:
        number = head.entries + 1
        try:
            entry = _entry(line, head, public_key)
        except AuditError as error:
            raise AuditError(f"{name} line {number}: {error}") from error
        head = entry.head
        yield entry


def complete_length(content: bytes) -> int:
    """Where the last complete line of a log ends; what follows was being written when the server stopped."""
    return content.rfind(b"\n") + 1


def head_file(path: Path) -> Path:
    """Where the head of a log is kept: `audit-head.json` beside `audit.jsonl`."""
    return path.with_name(f"{path.stem}-head.json")


def new_head(head: Head, key: SigningKey) -> bytes:
    """The content of the head's file."""
    return _signed(
        {"format": HEAD_FORMAT, "version": VERSION, "entries": head.entries, "digest": head.digest}, key
    )


def read_head(path: Path, public_key: PublicKey) -> Head:
    """The head in a file, `EMPTY` where there is no file; raises `AuditError` when it was altered."""
    if not path.exists():
        return EMPTY
    try:
        content = _opened(path.read_bytes(), public_key)
        if content.keys() != {"format", "version", "entries", "digest", "signature"}:
            raise AuditError("it has other keys than a head has")
        if (content["format"], content["version"]) != (HEAD_FORMAT, VERSION):
            raise AuditError(f"it is not a {HEAD_FORMAT} of version {VERSION}")
    except AuditError as error:
        raise AuditError(f"{path.name}: {error}") from error
    return Head(content["entries"], content["digest"])


def check_head(entries: Iterable[Entry], noted: Head, name: str) -> None:
    """Raise `AuditError` unless `noted` is the head after the last entry, or after the one before.

    A server that stops between writing a line and writing the head leaves the latter.
    """
    heads = [EMPTY, *(entry.head for entry in entries)][-2:]
    if noted in heads:
        return
    if noted.entries > heads[-1].entries:
        raise AuditError(
            f"{name} ends after line {heads[-1].entries}, its signed head says {noted.entries}: lines were "
            "removed from its end"
        )
    raise AuditError(
        f"{name} line {heads[-1].entries} is not what the signed head says ({noted.entries} lines, the last "
        f"{noted.digest[:12]}…): the head is older than the log, or that of another one"
    )


def _entry(line: bytes, head: Head, public_key: PublicKey) -> Entry:
    content = _opened(line, public_key)
    if content.keys() != _KEYS or content["version"] != VERSION:
        raise AuditError(f"it is not an entry of version {VERSION}")
    number, event, fields = content["number"], content["event"], content["fields"]
    if number != head.entries + 1 or content["previous"] != head.digest:
        raise AuditError(
            f"it does not follow the line before it (it is entry {number}, and the hash of the line before "
            "is another): lines were removed, added, swapped, or come from another log"
        )
    texts = (event, content["time"])
    if not all(isinstance(text, str) for text in texts) or not isinstance(fields, dict):
        raise AuditError("event, time or fields are of another type")
    if not _EVENT.fullmatch(event) or not _TIME.fullmatch(content["time"]):
        raise AuditError("event or time are not of the right form")
    return Entry(number, content["time"], event, fields, hashlib.sha256(line).hexdigest())


def _signed(unsigned: dict[str, Json], key: SigningKey) -> bytes:
    return canonical({**unsigned, "signature": key.sign(canonical(unsigned)).hex()})


def _opened(signed: bytes, public_key: PublicKey) -> dict[str, Any]:
    """A signed JSON object, after a look at its bytes and its signature."""
    try:
        content = json.loads(signed)
    except (ValueError, RecursionError) as error:
        raise AuditError("it is not JSON: it was altered") from error
    if not isinstance(content, dict) or canonical(content) != signed:
        raise AuditError("it is not canonical JSON: it was altered")
    signature = content.get("signature")
    if not isinstance(signature, str) or not _SIGNATURE.fullmatch(signature):
        raise AuditError("it has no signature")
    unsigned = {key: value for key, value in content.items() if key != "signature"}
    try:
        public_key.verify(bytes.fromhex(signature), canonical(unsigned))
    except InvalidSignature:
        raise AuditError("its signature is wrong: it was altered, or signed with another key") from None
    return content


def _same(read: Json, given: object) -> bool:
    """Whether JSON gives back what it was given: lists are lists, true is not 1."""
    if isinstance(read, dict) and isinstance(given, dict):
        return read.keys() == given.keys() and all(_same(read[key], given[key]) for key in read)
    if isinstance(read, list) and isinstance(given, list):
        return len(read) == len(given) and all(map(_same, read, given))
    return type(read) is type(given) and read == given
