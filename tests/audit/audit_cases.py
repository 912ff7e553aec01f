"""What the tests of the audit log share: run folders with a log that fits them."""

import hashlib
import json
from pathlib import Path
from typing import Any

from fedkron.audit import AuditLog, SigningKey, public_key_of
from fedkron.audit.lines import Json, canonical
from fedkron.rundir import ADAPTER, AUDIT, OUTCOME, ROUNDS, SETTINGS, group_directory

NODES = ["11", "22", "33"]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def opening(key: SigningKey, settings: bytes = b"{}") -> dict[str, Any]:
    return {"settings_sha256": sha256(settings), "fedkron": "0.1.0", "public_key": public_key_of(key)}


def start(folder: Path, key: SigningKey) -> AuditLog:
    """A new run folder with an open log."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SETTINGS).write_bytes(b"{}")
    log = AuditLog.open(folder / AUDIT, key)
    log.append("opened", **opening(key))
    return log


def admit(log: AuditLog, number: int, nodes: list[str]) -> None:
    entries: list[Any] = [
        {"node": n, "task": "quiz", "partition": i, "weight": 2} for i, n in enumerate(nodes)
    ]
    log.append("admitted", round=number, nodes=entries)


def begin_round(log: AuditLog, number: int) -> None:
    """A round up to its aggregate: two nodes are admitted, one is refused."""
    log.append("sent", round=number, phase="train", nodes=list(NODES), adapter_sha256=sha256(b"sent"))
    for node in NODES:
        records: Any = {"arrays": {"sha256": sha256(node.encode()), "bytes": 7}}
        log.append("upload", round=number, node=node, records=records)
    admit(log, number, NODES[:2])
    log.append("refused", round=number, phase="train", node="33", reason="wrong [bold]contract")


def adapter_of(number: int, group: str = "") -> bytes:
    return f"adapter {group} of round {number}".encode()


def finish_round(folder: Path, log: AuditLog, number: int) -> None:
    """What the server writes at the end of a round."""
    (folder / ADAPTER).write_bytes(adapter_of(number))
    place = group_directory(folder, "quiz")
    place.mkdir(parents=True, exist_ok=True)
    (place / ADAPTER).write_bytes(adapter_of(number, "quiz"))
    log.append(
        "aggregated",
        round=number,
        adapter_sha256=sha256(adapter_of(number)),
        groups={"quiz": sha256(adapter_of(number, "quiz"))},
        nodes=list(NODES[:2]),
    )
    with (folder / ROUNDS).open("a") as file:
        file.write(json.dumps({"round": number}) + "\n")


def complete(folder: Path, log: AuditLog) -> None:
    log.append("ended", status="completed")
    (folder / OUTCOME).write_text('{"status": "completed"}')
    log.close()


def audited_run(folder: Path, key: SigningKey, rounds: int = 2) -> Path:
    """A finished run."""
    log = start(folder, key)
    for number in range(1, rounds + 1):
        begin_round(log, number)
        finish_round(folder, log, number)
    complete(folder, log)
    return folder


def log_lines(folder: Path) -> list[bytes]:
    """The lines of a log, with their line feeds."""
    return (folder / AUDIT).read_bytes().splitlines(keepends=True)


def write_lines(folder: Path, lines: list[bytes]) -> None:
    (folder / AUDIT).write_bytes(b"".join(lines))


def altered(line: bytes, key: SigningKey | None = None, **changes: Json) -> bytes:
    """A line with other content, canonical; signed anew if a key is given."""
    content = json.loads(line) | changes
    if key is not None:
        del content["signature"]
        content["signature"] = key.sign(canonical(content)).hex()
    return canonical(content) + b"\n"
