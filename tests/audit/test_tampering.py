"""Whatever is done to a finished log without the key is found."""

import shutil
from pathlib import Path

import pytest
from audit_cases import altered, audited_run, log_lines, write_lines
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedkron.audit import Head, SigningKey, verify
from fedkron.errors import AuditError
from fedkron.rundir import ADAPTER, AUDIT, OUTCOME, ROUNDS, SETTINGS

HEAD = "audit-head.json"
anything = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def run(tmp_path: Path, finished_run: Path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


def refused(run: Path) -> str:
    with pytest.raises(AuditError) as error:
        verify(run)
    return str(error.value)


def test_an_untouched_log_is_fine_and_has_every_event(run: Path, key: SigningKey) -> None:
    round_of_events = ["sent", "upload", "upload", "upload", "admitted", "refused", "aggregated"]
    verified = verify(run, key.public_key())
    assert [entry.event for entry in verified.entries] == ["opened", *round_of_events * 2, "ended"]
    assert verified.rounds == 2
    assert verified.head.entries == 16


@anything
@given(data=st.data())
def test_no_byte_can_be_changed(data: st.DataObject, finished_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run", dirs_exist_ok=True)
    file = Path(run) / data.draw(st.sampled_from([AUDIT, AUDIT, AUDIT, HEAD, SETTINGS, ADAPTER]))
    content = bytearray(file.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= data.draw(st.integers(1, 255))
    file.write_bytes(content)
    refused(Path(run))


def test_the_case_of_a_signature_cannot_be_changed(run: Path) -> None:
    # The same number, in other digits; after the last line there is none that has its hash.
    lines = log_lines(run)
    start = lines[-1].index(b'"signature":"') + len(b'"signature":"')
    upper = lines[-1][:start] + lines[-1][start : start + 128].upper() + lines[-1][start + 128 :]
    assert upper != lines[-1]
    write_lines(run, [*lines[:-1], upper])
    assert "line 16" in refused(run)


@pytest.mark.parametrize("position", range(16))
def test_no_line_can_be_removed(position: int, run: Path) -> None:
    lines = log_lines(run)
    write_lines(run, lines[:position] + lines[position + 1 :])
    assert "line" in refused(run)


@pytest.mark.parametrize("kept", range(16))
def test_no_tail_can_be_removed(kept: int, run: Path) -> None:
    write_lines(run, log_lines(run)[:kept])
    refused(run)


@anything
@given(first=st.integers(0, 15), second=st.integers(0, 15))
def test_no_lines_can_be_swapped_or_repeated(
    first: int, second: int, finished_run: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(finished_run, tmp_path / "run", dirs_exist_ok=True))
    lines = log_lines(run)
    write_lines(run, [*lines[:first], lines[second], *lines[first:]])
    refused(run)
    if first != second:
        lines[first], lines[second] = lines[second], lines[first]
        write_lines(run, lines)
        refused(run)


@pytest.mark.parametrize("position", [1, 8, 16])
def test_no_line_can_be_added(position: int, run: Path) -> None:
    lines = log_lines(run)
    head = verify(run).entries[position - 1].head
    place = {"number": position + 1, "previous": head.digest, "event": "noted", "fields": {}}
    copied, foreign = lines[2], Ed25519PrivateKey.generate()
    for line in (altered(copied, **place), altered(copied, foreign, **place)):
        write_lines(run, [*lines[:position], line, *lines[position:]])
        assert f"line {position + 1}: its signature is wrong" in refused(run)
    content = altered(copied, foreign, **place).replace(b'"signature"', b'"signed_by"')
    write_lines(run, [*lines[:position], content, *lines[position:]])
    assert "it has no signature" in refused(run)


@pytest.mark.parametrize("kept", range(1, 16))
def test_the_tail_of_another_run_of_the_same_server_does_not_fit(
    kept: int, run: Path, key: SigningKey, tmp_path: Path
) -> None:
    other = audited_run(tmp_path / "other", key)
    write_lines(run, log_lines(run)[:kept] + log_lines(other)[kept:])
    shutil.copy(other / HEAD, run / HEAD)
    assert f"line {kept + 1}: it does not follow" in refused(run)


def test_the_head_of_another_time_or_log_does_not_fit(run: Path, key: SigningKey, tmp_path: Path) -> None:
    other = audited_run(tmp_path / "other", key)
    shutil.copy(other / HEAD, run / HEAD)
    assert "another one" in refused(run)
    (run / HEAD).unlink()
    assert "the head is older" in refused(run)


def test_a_log_that_was_signed_anew_is_found_by_whoever_knows_the_key_or_an_entry(
    finished_run: Path, key: SigningKey, tmp_path: Path
) -> None:
    forged = audited_run(tmp_path / "forged", Ed25519PrivateKey.generate())
    noted = verify(finished_run).entries[4].head
    verify(forged)
    with pytest.raises(AuditError, match="names another public key"):
        verify(forged, key.public_key())
    with pytest.raises(AuditError, match="line 5 is not the one that was noted"):
        verify(forged, head=noted)
    assert verify(finished_run, key.public_key(), noted).head.entries == 16
    with pytest.raises(AuditError, match="line 17 that was noted is missing"):
        verify(finished_run, head=Head(17, "0" * 64))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (OUTCOME, b'{"status": "failed", "error": "RunError: no"}', "says status 'failed'"),
        (OUTCOME, b'{"status": "completed", "error": "RunError: no"}', "says error 'RunError: no'"),
        (OUTCOME, b"[]", "is damaged"),
        (ROUNDS, b'{"round": 1}\n', r"has rounds \[1\], audit.jsonl has \[1, 2\]"),
        (ROUNDS, b'{"round": 1}\n{"round": 2}\n{"round": 3}\n', r"has rounds \[1, 2, 3\]"),
        (ROUNDS, b'{"round": 2}\n{"round": 1}\n', r"has rounds \[2, 1\]"),
        (ROUNDS, b"\xff\n", "is damaged"),
        (ADAPTER, b"adapter  of round 1", "not the adapter"),
        (
            f"groups/quiz/{ADAPTER}",
            b"adapter quiz of round 1",
            "groups/quiz/adapter.safetensors is missing or",
        ),
        (SETTINGS, b"{} ", "settings.json is missing or not what"),
        (f"{AUDIT}.torn-1", b"x", "is not noted"),
    ],
)
def test_the_other_files_of_the_run_have_to_fit(file: str, content: bytes, message: str, run: Path) -> None:
    (run / file).write_bytes(content)
    with pytest.raises(AuditError, match=message):
        verify(run)


@pytest.mark.parametrize("file", [ROUNDS, ADAPTER, SETTINGS, f"groups/quiz/{ADAPTER}", AUDIT])
def test_a_file_that_is_missing_is_missed(file: str, run: Path) -> None:
    (run / file).unlink()
    refused(run)
