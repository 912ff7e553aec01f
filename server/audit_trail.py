"""What a run enters in its audit log: who sent what, what became of it, and which adapter came of that."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from flwr.app import MessageType

from fedkron.audit import AuditLog, public_key_of, server_key
from fedkron.flower.awaited import Arrival
from fedkron.flower.global_adapter import FOR_ALL
from fedkron.flower.round_report import Verdict
from fedkron.rundir import AUDIT, CHECKPOINT, SETTINGS

KEY_VARIABLE = "FEDKRON_AUDIT_KEY"
"""Environment variable with the file of the server's key."""

NO_CHECKPOINT = "0" * 64

Event = tuple[str, dict[str, object]]


class AuditTrail:
    """The audit log of one run; open it with `begin` or `resume`, and close it in the end.

    Arrivals wait in memory for the verdict on them: all of them go on the disk at once, before anything is
    made of them that is kept.
    """

    def __init__(self, log: AuditLog) -> None:
        self._log = log
        self._waiting: list[Event] = []
        self._admitted: list[str] = []

    @staticmethod
    def begin(folder: Path) -> AuditTrail:
        """A new log in a run folder with settings. Raises `AuditError` for a key that others may read."""
        key = server_key(_key_file())
        trail = AuditTrail(AuditLog.open(folder / AUDIT, key))
        facts = {"fedkron": version("fedkron"), "public_key": public_key_of(key)}
        trail._log.append("opened", settings_sha256=_sha256(folder / SETTINGS), **facts)
        return trail

    @staticmethod
    def resume(folder: Path, done: int) -> AuditTrail:
        """Go on in the log after so many rounds; what follows them there does not count any more.

        Raises `AuditError` when it was altered, or is another server's.
        """
        if not (folder / AUDIT).exists():  # the run was cut off before it had one
            return AuditTrail.begin(folder)
        trail = AuditTrail(AuditLog.open(folder / AUDIT, server_key(_key_file())))
        checkpoint = _sha256(folder / CHECKPOINT) if done else NO_CHECKPOINT
        settings = _sha256(folder / SETTINGS)
        trail._log.append("resumed", round=done, checkpoint_sha256=checkpoint, settings_sha256=settings)
        return trail

    def arrived(self, arrival: Arrival) -> None:
        """An upload is there."""
        records = {key: {"sha256": digest, "bytes": size} for key, (digest, size) in arrival.payloads.items()}
        fields = {"round": arrival.round, "node": str(arrival.node), "records": records}
        self._waiting.append(("upload", fields))

    def judged(self, verdict: Verdict) -> None:
        """It has been decided who takes part."""
        number = {"round": verdict.round}
        if verdict.phase == MessageType.TRAIN:
            self._admitted = [str(origin.node) for origin in verdict.admitted]
            nodes = [
                {"node": str(o.node), "task": o.task, "partition": o.partition, "weight": weight}
                for o, weight in verdict.admitted.items()
            ]
            self._waiting.append(("admitted", {**number, "nodes": nodes}))
        for node, reason in verdict.refused.items():
            fields = {**number, "phase": verdict.phase, "node": str(node), "reason": reason}
            self._waiting.append(("refused", fields))
        self._flush()

    def aggregated(self, round_: int, adapters: Mapping[str, Path]) -> None:
        """The adapters of a round are saved."""
        digests = {name: _sha256(path) for name, path in adapters.items()}
        fields = {"adapter_sha256": digests.pop(FOR_ALL), "groups": digests, "nodes": self._admitted}
        self._waiting.append(("aggregated", {"round": round_, **fields}))
        self._admitted = []
        self._flush()

    def ended(self, outcome: Mapping[str, str]) -> None:
        """The run is over."""
        self._waiting.append(("ended", dict(outcome)))
        self._flush()

    def close(self) -> None:
        """Let others open the log."""
        self._log.close()

    def _flush(self) -> None:
        self._log.append_all(self._waiting)  # type: ignore[arg-type]
        self._waiting = []


def _key_file() -> Path:
    if named := os.environ.get(KEY_VARIABLE):
        return Path(named).expanduser()
    configuration = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(configuration) / "fedkron" / "audit-key.pem"


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
