"""Checking an audit log: each line, their chain, what they say of the run, and the run's other files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedkron.audit.events import ENDED, OPENED, REPAIRED, History, check_fields
from fedkron.audit.keys import PublicKey
from fedkron.audit.lines import Entry, Head, check_head, complete_length, head_file, read_head, read_lines
from fedkron.audit.log import torn_files
from fedkron.errors import AuditError
from fedkron.rundir import ADAPTER, AUDIT, OUTCOME, ROUNDS, SETTINGS, group_directory


@dataclass(frozen=True)
class Verified:
    """A log in which nothing is wrong: its entries, their head, the public key (hex) that signed them, and
    how many rounds count.
    """

    entries: tuple[Entry, ...]
    head: Head
    public_key: str
    rounds: int


def verify(folder: Path, public_key: PublicKey | None = None, head: Head | None = None) -> Verified:
    """Check the audit log of a run folder, and the folder's other files against it.

    Without `public_key` the log is checked with the key that it names itself: then it may be another log,
    signed with another key. `head` is what somebody noted earlier: the log has to contain it. Raises
    `AuditError` that names the line or the file, and what is wrong.
    """
    path = folder / AUDIT
    entries = read_log(path, public_key)
    if head is not None:
        _check_contains(entries, head)
    history = History.of(entries, AUDIT)
    _check_settings(folder, entries[0])
    _check_torn(path, entries)
    _check_outcome(folder, entries[-1])
    _check_rounds(folder, history.finished, entries[-1])
    named = entries[0].fields["public_key"]
    return Verified(entries, entries[-1].head, named, len(history.finished))


def read_log(path: Path, public_key: PublicKey | None = None) -> tuple[Entry, ...]:
    """The entries of a log, at least one: each line, their chain and the head's file are checked.

    Raises `AuditError` that names the line, and what is wrong.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise AuditError(f"there is no audit log {path}: {error.strerror}") from None
    named = _named_key(content, path.name)
    if public_key is not None and public_key != named:
        raise AuditError(f"{path.name} line 1 names another public key: the log was signed with that one")
    entries = tuple(read_lines(content, named, path.name))
    if complete_length(content) < len(content):
        raise AuditError(
            f"{path.name} line {len(entries) + 1} is incomplete: the server is writing it, or stopped "
            "meanwhile (resuming the run repairs that), or its end was removed"
        )
    check_head(entries, read_head(head_file(path), named), path.name)
    return entries


def _named_key(content: bytes, name: str) -> PublicKey:
    """The key in the first line, which nothing vouches for yet."""
    try:
        first = json.loads(content.partition(b"\n")[0])
        check_fields(OPENED, fields := first["fields"])
        return Ed25519PublicKey.from_public_bytes(bytes.fromhex(fields["public_key"]))
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise AuditError(f"{name} line 1: it is not an event {OPENED!r} with a public key") from error


def _check_contains(entries: Sequence[Entry], head: Head) -> None:
    if not 1 <= head.entries <= len(entries):
        raise AuditError(f"{AUDIT} has {len(entries)} entries, line {head.entries} that was noted is missing")
    if entries[head.entries - 1].digest != head.digest:
        raise AuditError(
            f"{AUDIT} line {head.entries} is not the one that was noted (its hash is "
            f"{entries[head.entries - 1].digest[:12]}…, not {head.digest[:12]}…): the log was rewritten"
        )


def _check_settings(folder: Path, opened: Entry) -> None:
    if _sha256(folder / SETTINGS) != opened.fields["settings_sha256"]:
        raise AuditError(f"{SETTINGS} is missing or not what the run was started with ({AUDIT} line 1)")


def _check_torn(path: Path, entries: Sequence[Entry]) -> None:
    noted = {entry.fields["file"]: entry for entry in entries if entry.event == REPAIRED}
    for file in sorted({torn.name for torn in torn_files(path)} | noted.keys()):
        if file not in noted:
            raise AuditError(f"{file} is not noted in {AUDIT}")
        if _sha256(path.with_name(Path(file).name)) != noted[file].fields["sha256"]:
            raise AuditError(f"{file} is missing or was altered ({AUDIT} line {noted[file].number})")


def _check_outcome(folder: Path, last: Entry) -> None:
    if not (folder / OUTCOME).exists():
        return
    outcome = _json(folder / OUTCOME)
    if last.event != ENDED:
        raise AuditError(f"there is {OUTCOME}, but {AUDIT} ends with {last.event!r}, not {ENDED!r}")
    for name in ("status", "error"):
        if outcome.get(name) != last.fields.get(name):
            raise AuditError(
                f"{OUTCOME} says {name} {outcome.get(name)!r}, {AUDIT} line {last.number} "
                f"{last.fields.get(name)!r}"
            )


def _check_rounds(folder: Path, finished: Sequence[Entry], last: Entry) -> None:
    """Rounds and adapters on the disk are those of the log.

    A round's files follow its entry: where the run has not completed, those of its last round may be missing.
    """
    written = _rounds(folder / ROUNDS)
    numbers = [entry.fields["round"] for entry in finished]
    completed = last.event == ENDED and last.fields["status"] == "completed"
    if written != numbers and (completed or written != numbers[:-1]):
        raise AuditError(f"{ROUNDS} has rounds {written or 'none'}, {AUDIT} has {numbers or 'none'}")
    possible = finished[max(len(written) - 1, 0) :]
    groups = {name for entry in possible for name in entry.fields["groups"]}
    files = {folder / ADAPTER: [entry.fields["adapter_sha256"] for entry in possible]} | {
        group_directory(folder, name) / ADAPTER: [entry.fields["groups"].get(name) for entry in possible]
        for name in sorted(groups)
    }
    for file, digests in files.items():
        if _sha256(file) not in (digests if written else [*digests, None]):
            name = file.relative_to(folder).as_posix()
            line = possible[-1].number if possible else last.number
            raise AuditError(f"{name} is missing or not the adapter that {AUDIT} names (up to line {line})")


def _rounds(path: Path) -> list[object]:
    try:
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        return [json.loads(line)["round"] for line in lines]
    except (LookupError, TypeError, ValueError, RecursionError) as error:
        raise AuditError(f"{path.name} is damaged: {error!r}") from error


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise AuditError(f"{path.name} is damaged: {error!r}") from error
    if not isinstance(content, dict):
        raise AuditError(f"{path.name} is damaged: it is no JSON object")
    return content


def _sha256(path: Path) -> str | None:
    """SHA-256 (hex) of a file; None where there is none."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
