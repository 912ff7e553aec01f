import json
import shutil
from pathlib import Path

import pytest
from audit_cases import log_lines, sha256, write_lines
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fedkron.audit import SigningKey, public_key_of
from fedkron.cli import main
from fedkron.rundir import AUDIT

Capture = pytest.CaptureFixture[str]


def output_of(capsys: Capture, *arguments: object) -> str:
    capsys.readouterr()
    assert main([*map(str, arguments)]) == 0
    return capsys.readouterr().out


def error_of(capsys: Capture, *arguments: object) -> str:
    capsys.readouterr()
    assert main([*map(str, arguments)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def public_pem(key: SigningKey, path: Path) -> Path:
    path.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return path


def test_verify_says_that_nothing_is_wrong_and_what_to_note(
    finished_run: Path, key: SigningKey, tmp_path: Path, capsys: Capture
) -> None:
    facts = json.loads(output_of(capsys, "audit", "verify", finished_run, "--json"))
    head = f"16:{sha256(log_lines(finished_run)[-1][:-1])}"
    assert facts == {"entries": 16, "head": head, "public_key": public_key_of(key), "rounds": 2}
    pem = public_pem(key, tmp_path / "public.pem")
    for pinned in ([], ["--key", pem], ["--head", head], ["--key", pem, "--head", head]):
        text = output_of(capsys, "audit", "verify", finished_run, *pinned)
        assert head in text
        assert "16 entries, 2 rounds" in text
        assert ("compare it" in text) == ("--key" not in pinned)


def test_verify_fails_in_one_line(finished_run: Path, tmp_path: Path, capsys: Capture) -> None:
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    write_lines(run, log_lines(run)[:-1])
    for action in ("verify", "show"):
        assert "lines were removed from its end" in error_of(capsys, "audit", action, run)
    stranger = public_pem(Ed25519PrivateKey.generate(), tmp_path / "public.pem")
    assert "another public key" in error_of(capsys, "audit", "verify", finished_run, "--key", stranger)
    for head in ("16", "0:" + "0" * 64, "16:xyz", "16:" + "A" * 64):
        assert "give N:HEX" in error_of(capsys, "audit", "verify", finished_run, "--head", head)
    assert "is not the one that was noted" in error_of(
        capsys, "audit", "verify", finished_run, "--head", "3:" + "0" * 64
    )
    assert "there is no audit log" in error_of(capsys, "audit", "verify", tmp_path / "nowhere")


def test_show_tells_who_sent_what_and_what_came_of_it(
    finished_run: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    rows = [line.split() for line in output_of(capsys, "audit", "show", finished_run).splitlines() if line]
    by_number = {row[0]: row for row in rows if row and row[0].isdigit()}
    assert by_number.keys() == {str(number) for number in range(1, 17)}
    assert by_number["4"][2:] == ["1", "upload", "22", "arrays", "7", "bytes", sha256(b"22")[:12]]
    assert by_number["6"][2:] == ["1", "admitted", "11,", "22", "quiz-0", "×", "2,", "quiz-1", "×", "2"]
    # What a node says is text, not markup.
    assert by_number["7"][2:] == ["1", "refused", "33", "train:", "wrong", "[bold]contract"]
    assert by_number["16"][2:] == ["ended", "completed"]


def test_show_is_limited_to_a_round(finished_run: Path, capsys: Capture) -> None:
    shown = json.loads(output_of(capsys, "audit", "show", finished_run, "--round", 2, "--json"))
    assert [entry["number"] for entry in shown["log"]] == list(range(9, 16))
    assert {entry["fields"]["round"] for entry in shown["log"]} == {2}
    assert "has no event of round 3" in error_of(capsys, "audit", "show", finished_run, "--round", 3)


def test_inspect_knows_an_audit_log(
    finished_run: Path, key: SigningKey, tmp_path: Path, capsys: Capture
) -> None:
    facts = json.loads(output_of(capsys, "inspect", finished_run / AUDIT, "--json"))
    assert (facts["format"], facts["public key"]) == ("audit log", public_key_of(key))
    assert facts["events"]["upload"] == 6
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    write_lines(run, log_lines(run)[:3])
    assert "lines were removed" in error_of(capsys, "inspect", run / AUDIT)
