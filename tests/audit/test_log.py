"""Logs are written, go on after a crash, and say what a run may say."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from audit_cases import (
    NODES,
    adapter_of,
    admit,
    altered,
    begin_round,
    complete,
    finish_round,
    log_lines,
    opening,
    sha256,
    start,
    write_lines,
)
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkron.audit import AuditLog, SigningKey, read_log, server_key, verify
from fedkron.audit.lines import Json, canonical
from fedkron.errors import AuditError
from fedkron.rundir import ADAPTER, AUDIT, OUTCOME, ROUNDS

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=8,
)


def test_a_line_is_as_specified(tmp_path: Path, key: SigningKey) -> None:
    log = start(tmp_path, key)
    log.append("note", text="ß\n", number=1.5)
    log.close()
    first, second = log_lines(tmp_path)
    content = json.loads(second)
    signature = bytes.fromhex(content.pop("signature"))
    written = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(json.loads(first)["fields"]["public_key"]))
    public.verify(signature, written.encode())
    assert content.keys() == {"version", "number", "time", "event", "fields", "previous"}
    assert content["previous"] == sha256(first.removesuffix(b"\n"))
    assert json.loads(first)["previous"] == "0" * 64
    assert (content["version"], content["number"], content["event"]) == (1, 2, "note")
    assert content["fields"] == {"text": "ß\n", "number": 1.5}
    head = json.loads((tmp_path / "audit-head.json").read_bytes())
    public.verify(
        bytes.fromhex(head.pop("signature")), json.dumps(head, sort_keys=True, separators=(",", ":")).encode()
    )
    digest = sha256(second.removesuffix(b"\n"))
    assert head == {"format": "fedkron-audit-head", "version": 1, "entries": 2, "digest": digest}
    assert (log.head.entries, log.head.digest) == (2, digest)
    with pytest.raises(InvalidSignature):
        public.verify(signature, written.encode() + b" ")


@settings(deadline=None, max_examples=60)
@given(fields=st.dictionaries(st.text().filter(lambda name: name not in ("event", "self")), plain))
def test_plain_json_comes_back_exactly(fields: dict[str, Any]) -> None:
    written = canonical(fields)
    assert json.loads(written) == fields
    assert canonical(json.loads(written)) == written


@pytest.mark.parametrize(
    "value",
    [math.nan, math.inf, (1, 2), {1: "one"}, b"bytes", Path("path"), "\ud800", [1, (2,)], {"x": object()}],
)
def test_what_is_not_plain_json_is_not_written(value: Json, tmp_path: Path, key: SigningKey) -> None:
    log = start(tmp_path, key)
    before = log_lines(tmp_path), log.head
    with pytest.raises(AuditError, match="cannot stand in an audit log"):
        log.append("note", value=value)
    assert (log_lines(tmp_path), log.head) == before
    log.append("note", value=1)
    assert len(read_log(tmp_path / AUDIT)) == 2


@pytest.mark.parametrize(
    ("event", "fields", "message"),
    [
        ("Two words", {}, "no proper name"),
        ("", {}, "no proper name"),
        ("refused", {"round": 1, "phase": "train", "node": "1"}, "lacks its field 'reason'"),
        ("resumed", {"round": -1, "checkpoint_sha256": "0" * 64}, "'round' that cannot be: -1"),
        ("resumed", {"round": True, "checkpoint_sha256": "0" * 64}, "'round' that cannot be: True"),
        ("resumed", {"round": 1, "checkpoint_sha256": "A" * 64}, "'checkpoint_sha256' that cannot be"),
        ("admitted", {"round": 1, "nodes": [{"node": "1"}]}, "'nodes' that cannot be"),
    ],
)
def test_events_that_cannot_be_are_not_written(
    event: str, fields: dict[str, Any], message: str, tmp_path: Path, key: SigningKey
) -> None:
    log = start(tmp_path, key)
    with pytest.raises(AuditError, match=message):
        log.append(event, **fields)
    assert len(read_log(tmp_path / AUDIT)) == 1


def test_a_log_begins_with_its_own_key(tmp_path: Path, key: SigningKey) -> None:
    log = AuditLog.open(tmp_path / AUDIT, key)
    other = Ed25519PrivateKey.generate()
    for event, fields in (("note", {}), ("opened", opening(other))):
        with pytest.raises(AuditError, match="the first event is 'opened'"):
            log.append(event, **fields)
    assert not (tmp_path / AUDIT).exists()
    log.append("opened", **opening(key))
    log.close()
    with pytest.raises(AuditError, match="line 1: its signature is wrong"):
        AuditLog.open(tmp_path / AUDIT, other)


def test_only_one_process_has_a_log_open(tmp_path: Path, key: SigningKey) -> None:
    log = start(tmp_path, key)
    with pytest.raises(AuditError, match="is open in another process"):
        AuditLog.open(tmp_path / AUDIT, key)
    program = f"""
from pathlib import Path
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fedkron.audit import AuditLog
AuditLog.open(Path({str(tmp_path / AUDIT)!r}), Ed25519PrivateKey.from_private_bytes(bytes(32)))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60
    )
    assert "is open in another process" in done.stderr
    log.close()
    again = AuditLog.open(tmp_path / AUDIT, key)
    assert again.head == log.head
    again.close()


@settings(deadline=None, max_examples=20)
@given(cut=st.integers(0, 10_000))
def test_a_line_torn_by_a_crash_is_kept_and_the_log_goes_on(
    cut: int, tmp_path_factory: pytest.TempPathFactory, key: SigningKey
) -> None:
    run = tmp_path_factory.mktemp("run")
    log = start(run, key)
    begin_round(log, 1)
    log.close()
    kept = log_lines(run)
    line = altered(kept[-1], key, number=len(kept) + 1, previous=log.head.digest)
    torn = line[: 1 + cut % (len(line) - 1)]
    write_lines(run, [*kept, torn])
    with pytest.raises(AuditError, match=f"line {len(kept) + 1} is incomplete"):
        verify(run)
    log = AuditLog.open(run / AUDIT, key)
    finish_round(run, log, 1)
    complete(run, log)
    assert (run / f"{AUDIT}.torn-1").read_bytes() == torn
    repaired = verify(run).entries[len(kept)]
    assert repaired.event == "repaired"
    assert repaired.fields == {"file": f"{AUDIT}.torn-1", "sha256": sha256(torn), "bytes": len(torn)}
    (run / f"{AUDIT}.torn-1").write_bytes(torn + b" ")
    with pytest.raises(AuditError, match="torn-1 is missing or was altered"):
        verify(run)


def test_a_first_line_torn_by_a_crash_is_noted_once_the_log_has_begun(
    tmp_path: Path, key: SigningKey
) -> None:
    (tmp_path / AUDIT).write_bytes(b'{"event":"open')
    log = start(tmp_path, key)
    log.close()
    assert [entry.event for entry in verify(tmp_path).entries] == ["opened", "repaired"]
    AuditLog.open(tmp_path / AUDIT, key).close()
    assert len(verify(tmp_path).entries) == 2


def test_a_crash_between_the_line_and_the_head_is_repaired(tmp_path: Path, key: SigningKey) -> None:
    log = start(tmp_path, key)
    before = (tmp_path / "audit-head.json").read_bytes()
    log.append("note")
    log.close()
    after = (tmp_path / "audit-head.json").read_bytes()
    (tmp_path / "audit-head.json").write_bytes(before)
    assert verify(tmp_path).head.entries == 2
    AuditLog.open(tmp_path / AUDIT, key).close()
    assert (tmp_path / "audit-head.json").read_bytes() == after


def test_an_altered_log_is_not_gone_on_with(tmp_path: Path, key: SigningKey) -> None:
    log = start(tmp_path, key)
    log.append("note")
    log.close()
    lines = log_lines(tmp_path)
    for changed in (lines[:1], [lines[0], lines[1].replace(b"note", b"nose")]):
        write_lines(tmp_path, changed)
        with pytest.raises(AuditError):
            AuditLog.open(tmp_path / AUDIT, key)
        assert log_lines(tmp_path) == changed


def test_a_log_that_could_not_be_written_is_not_gone_on_with(tmp_path: Path, key: SigningKey) -> None:
    run = tmp_path / "run"
    log = start(run, key)
    (run / "audit-head.json").unlink()
    (run / "audit-head.json").mkdir()
    with pytest.raises(OSError, match="directory"):
        log.append("note")
    with pytest.raises(AuditError, match="could not be written before"):
        log.append("note")
    assert len(log_lines(run)) == 2


def test_time_does_not_order_events(tmp_path: Path, key: SigningKey) -> None:
    start(tmp_path, key).close()
    first = log_lines(tmp_path)[0]
    past = altered(
        first, key, time="1999-01-01T00:00:00Z", number=2, event="note", previous=sha256(first[:-1])
    )
    write_lines(tmp_path, [first, past])
    assert [entry.time[:4] for entry in verify(tmp_path).entries][1] == "1999"


def run_of(folder: Path, key: SigningKey, *rounds: int) -> AuditLog:
    log = start(folder, key)
    for number in rounds:
        begin_round(log, number)
        finish_round(folder, log, number)
    return log


def resume(folder: Path, log: AuditLog, checkpoint: int) -> None:
    """Go back to a round, as a server does that goes on from a checkpoint."""
    log.append("resumed", round=checkpoint, checkpoint_sha256=sha256(b"checkpoint"))
    (folder / OUTCOME).unlink(missing_ok=True)
    (folder / ROUNDS).write_text("".join(f'{{"round": {n}}}\n' for n in range(1, checkpoint + 1)))


def test_rounds_that_were_given_up_stay_in_the_log_and_do_not_count(tmp_path: Path, key: SigningKey) -> None:
    log = run_of(tmp_path, key, 1, 2)
    begin_round(log, 3)
    log.append("ended", status="failed", error="RunError: too few")
    (tmp_path / OUTCOME).write_text('{"status": "failed", "error": "RunError: too few"}')
    assert verify(tmp_path).rounds == 2
    resume(tmp_path, log, 1)
    for number in (2, 3):
        begin_round(log, number)
        finish_round(tmp_path, log, number)
    complete(tmp_path, log)
    verified = verify(tmp_path)
    assert verified.rounds == 3
    assert [e.fields["round"] for e in verified.entries if e.event == "aggregated"] == [1, 2, 2, 3]


def test_a_run_may_stop_between_an_entry_and_the_round_s_files(tmp_path: Path, key: SigningKey) -> None:
    log = run_of(tmp_path, key, 1)
    begin_round(log, 2)
    digest = sha256(adapter_of(2))
    log.append("aggregated", round=2, adapter_sha256=digest, groups={}, nodes=[NODES[0]])
    assert verify(tmp_path).rounds == 2
    (tmp_path / ADAPTER).write_bytes(adapter_of(2))
    assert verify(tmp_path).rounds == 2
    (tmp_path / ADAPTER).write_bytes(adapter_of(3))
    with pytest.raises(AuditError, match="not the adapter"):
        verify(tmp_path)
    (tmp_path / ADAPTER).write_bytes(adapter_of(2))
    complete(tmp_path, log)
    with pytest.raises(AuditError, match="has rounds"):
        verify(tmp_path)


def test_an_adapter_that_no_round_has_made_is_found(tmp_path: Path, key: SigningKey) -> None:
    start(tmp_path, key)
    assert verify(tmp_path).rounds == 0
    (tmp_path / ADAPTER).write_bytes(adapter_of(1))
    with pytest.raises(AuditError, match="not the adapter"):
        verify(tmp_path)


def test_where_no_upload_is_noted_none_is_expected(tmp_path: Path, key: SigningKey) -> None:
    log = start(tmp_path, key)
    log.append("sent", round=1, phase="train", nodes=list(NODES), adapter_sha256=sha256(b""))
    admit(log, 1, NODES)
    finish_round(tmp_path, log, 1)
    complete(tmp_path, log)
    assert verify(tmp_path).rounds == 1


def aggregate(log: AuditLog, number: int, *nodes: str) -> None:
    log.append("aggregated", round=number, adapter_sha256=sha256(b""), groups={}, nodes=list(nodes))


def resume_at(log: AuditLog, checkpoint: int) -> None:
    log.append("resumed", round=checkpoint, checkpoint_sha256=sha256(b""))


@pytest.mark.parametrize(
    ("continued", "message"),
    [
        (lambda log: begin_round(log, 3), "belongs to round 3, but round 1 is finished"),
        (lambda log: (begin_round(log, 2), begin_round(log, 3)), "round 3, but round 2 is not finished"),
        (lambda log: (begin_round(log, 2), begin_round(log, 1)), "round 1, but round 2 is not finished"),
        (lambda log: (begin_round(log, 2), admit(log, 2, ["22"])), "'22' is admitted twice in round 2"),
        (
            lambda log: (begin_round(log, 2), admit(log, 2, ["44"])),
            "'44' is admitted in round 2 without an up",
        ),
        (lambda log: admit(log, 2, ["11", "11"]), "'11' is admitted twice in round 2"),
        (lambda log: aggregate(log, 1), "round 1 is aggregated, but round 1 is finished"),
        (lambda log: (begin_round(log, 2), aggregate(log, 2, "33")), "'33' is in the aggregate, but was not"),
        (lambda log: resume_at(log, 2), "it resumes from round 2, but 1 rounds were finished"),
        (lambda log: (resume_at(log, 0), begin_round(log, 2)), "belongs to round 2, but round 0 is finished"),
        (lambda log: log.append("opened", **opening(log._key)), "a log begins with its one event"),
        (lambda log: (log.append("ended", status="failed"), log.append("note")), "'note' follows 'ended'"),
    ],
)
def test_a_signed_log_of_a_run_that_cannot_have_been_is_refused(
    continued: Callable[[AuditLog], object], message: str, tmp_path: Path, key: SigningKey
) -> None:
    log = run_of(tmp_path, key, 1)
    verify(tmp_path)
    continued(log)
    with pytest.raises(AuditError, match=message):
        verify(tmp_path)


def test_checking_a_log_changes_nothing(tmp_path: Path, key: SigningKey) -> None:
    run_of(tmp_path, key, 1).close()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    verify(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_a_full_disk_leaves_whole_lines_and_the_log_goes_on_later(tmp_path: Path) -> None:
    """The size of files is limited for this process alone: what is beyond cannot be written."""
    program = """
import resource, signal, sys
from pathlib import Path
from fedkron.audit import AuditLog, public_key_of, server_key

folder = Path(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
key = server_key(folder / "key.pem")
log = AuditLog.open(folder / "audit.jsonl", key)
log.append("opened", settings_sha256="0" * 64, fedkron="1", public_key=public_key_of(key))
size = (folder / "audit.jsonl").stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, resource.RLIM_INFINITY))
try:
    log.append_all([("note", {"text": "x" * 50})] * 3)
except OSError:
    sys.exit(7)
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert done.returncode == 7
    path = tmp_path / "audit.jsonl"
    assert [entry.event for entry in read_log(path)] == ["opened"]
    log = AuditLog.open(path, server_key(tmp_path / "key.pem"))
    log.append_all([("note", {"text": "there is room again"}), ("note", {"text": "and more"})])
    log.close()
    assert [entry.event for entry in read_log(path)] == ["opened", "note", "note"]
