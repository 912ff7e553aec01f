"""Writing an audit log: append-only JSON lines, hash-chained, each signed with Ed25519."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock

from filelock import FileLock, Timeout

from fedkron.atomic import write_atomically
from fedkron.audit.events import OPENED, REPAIRED, check_fields
from fedkron.audit.keys import SigningKey, public_key_of
from fedkron.audit.lines import (
    EMPTY,
    Entry,
    Head,
    Json,
    check_head,
    complete_length,
    head_file,
    new_head,
    new_line,
    read_head,
    read_lines,
)
from fedkron.errors import AuditError


class AuditLog:
    """An open log. Make one with `AuditLog.open`; only one process at a time has it open."""

    def __init__(self, path: Path, key: SigningKey, head: Head, lock: FileLock) -> None:
        self._path = path
        self._key = key
        self._head = head
        self._lock = lock
        self._appending = Lock()
        self._failed = False

    @staticmethod
    def open(path: Path, key: SigningKey) -> AuditLog:
        """Open a new log, or go on after the last complete line of one that is there, verified first.

        A last line that was being written when the server stopped is moved to `<name>.torn-N`, and noted as
        event `repaired`. Raises `AuditError`, and changes nothing then, when the log is open elsewhere, was
        altered, or belongs to another key.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=0, thread_local=False)
        try:
            lock.acquire()
        except Timeout:
            raise AuditError(f"{path} is open in another process: a log has one writer") from None
        try:
            return _opened(path, key, lock)
        except BaseException:
            lock.release()
            raise

    @property
    def head(self) -> Head:
        """How many entries there are, and the digest of the last: what a witness should note."""
        return self._head

    def append(self, event: str, **fields: Json) -> None:
        """Add an entry; it is on the disk when this returns.

        The first is `opened`; it gets a random `nonce`, so that no two logs are alike. Raises `AuditError`,
        and writes nothing then, for fields that are not plain JSON, an event that lacks a field or has no
        proper name, a first event other than `opened` or with another key, and after a write that failed.
        """
        self.append_all([(event, fields)])

    def append_all(self, events: Sequence[tuple[str, dict[str, Json]]]) -> None:
        """Add entries by event and fields as `append` does: all or none, at the price of one on the disk."""
        with self._appending:
            events = list(events)
            if self._head == EMPTY and events:
                event, fields = events[0]
                events[0] = event, {"nonce": secrets.token_hex(16), **fields}
                self._check_first(*events[0])
            for event, fields in events:
                check_fields(event, fields)
            self._write(events)
            if any(event == OPENED for event, _ in events):
                self._note_torn(set())

    def close(self) -> None:
        """Let others open the log."""
        self._lock.release()

    def _check_first(self, event: str, fields: dict[str, Json]) -> None:
        if event != OPENED or fields.get("public_key") != public_key_of(self._key):
            raise AuditError(f"the first event is {OPENED!r}, with this log's public_key; this is {event!r}")

    def _write(self, events: Sequence[tuple[str, dict[str, Json]]]) -> None:
        if self._failed:
            raise AuditError(f"{self._path} could not be written before: open it again")
        head, lines = self._head, []
        for event, fields in events:
            lines.append(line := new_line(head, event, fields, self._key))
            head = Head(head.entries + 1, hashlib.sha256(line).hexdigest())
        # What a write that fails has left, and could not be taken back, is for `open` to find.
        self._failed = True
        left = memoryview(b"".join(line + b"\n" for line in lines))
        with self._path.open("ab", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            try:
                while left:
                    left = left[file.write(left) :]
                os.fsync(file.fileno())
            except OSError:
                with suppress(OSError):
                    os.truncate(self._path, end)
                raise
        self._head = head
        self._write_head()
        self._failed = False

    def _write_head(self) -> None:
        write_atomically(head_file(self._path), new_head(self._head, self._key))

    def _note_torn(self, noted: set[object]) -> None:
        for torn in torn_files(self._path):
            if torn.name not in noted:
                content = torn.read_bytes()
                digest = hashlib.sha256(content).hexdigest()
                fields: dict[str, Json] = {"file": torn.name, "sha256": digest, "bytes": len(content)}
                self._write([(REPAIRED, fields)])


def torn_files(path: Path) -> list[Path]:
    """The incomplete lines that were moved aside from a log, in order."""
    found = {torn.name.rpartition("-")[2]: torn for torn in path.parent.glob(f"{path.name}.torn-*")}
    return [found[number] for number in sorted(filter(str.isdecimal, found), key=int)]


def _opened(path: Path, key: SigningKey, lock: FileLock) -> AuditLog:
    content = path.read_bytes() if path.exists() else b""
    entries = list(read_lines(content, key.public_key(), path.name))
    check_head(entries, noted := read_head(head_file(path), key.public_key()), path.name)
    end = complete_length(content)
    if end < len(content):
        _move_aside(path, content[end:], end)
    log = AuditLog(path, key, entries[-1].head if entries else EMPTY, lock)
    if entries:
        if noted != log.head:
            log._write_head()
        log._note_torn(_noted_files(entries))
    return log


def _move_aside(path: Path, torn: bytes, end: int) -> None:
    # The copy comes first: a crash in between leaves two, and both are noted.
    write_atomically(path.with_name(f"{path.name}.torn-{len(torn_files(path)) + 1}"), torn)
    with path.open("r+b") as file:
        file.truncate(end)
        os.fsync(file.fileno())


def _noted_files(entries: list[Entry]) -> set[object]:
    return {entry.fields["file"] for entry in entries if entry.event == REPAIRED}
