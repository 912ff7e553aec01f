"""The faults: their short path on real processes, and that the judge is not blind."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedkron.rundir import ADAPTER, CHECKPOINT, LEDGER, OUTCOME
from fedkron.runlog import read_run
from simulations import chaos
from simulations.chaos_study.dropouts import random_dropouts
from simulations.chaos_study.reference import TRAIN, Fate, reference_state, same_bits
from simulations.chaos_study.scenarios import NODES, all_answer, tiny_settings
from simulations.chaos_study.tiny import write_tiny
from simulations.chaos_study.verdict import Findings, corrupt_files, verdict_of

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny(folder)
    return folder


def test_the_quick_path_ends_as_expected(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "simulations.chaos", "--quick", "--json", "-"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    verdicts = {verdict["name"]: verdict for verdict in json.loads(done.stdout)}
    assert set(verdicts) == {"superlink-killed", "dropouts-fp32", "dropouts-ecsq"}
    for verdict in verdicts.values():
        assert (verdict["lost_rounds"], verdict["corrupt_files"], verdict["orphans"]) == (0, [], [])
    assert verdicts["superlink-killed"]["failures"] == 0
    assert verdicts["dropouts-fp32"]["failures"] > 0
    assert list(tmp_path.iterdir()) == []


def test_fates_change_the_result_each_in_its_own_way(tiny: Path, tmp_path: Path) -> None:
    def result(name: str, fate: Fate) -> dict[str, np.ndarray]:
        settings = tiny_settings(tiny, tmp_path, name, num_server_rounds=3)

        def fates(node: int, round_: int, phase: str) -> Fate:
            return fate if (node, round_, phase) == (0, 2, TRAIN) else Fate.ANSWERED

        return reference_state(settings, NODES, fates)

    calm = reference_state(tiny_settings(tiny, tmp_path, "calm", num_server_rounds=3), NODES, all_answer)
    assert same_bits(result("again", Fate.ANSWERED), calm)
    late, lost = result("late", Fate.LATE), result("lost", Fate.LOST)
    states = [calm, late, lost]
    assert not any(same_bits(a, b) for i, a in enumerate(states) for b in states[:i])


def test_dropouts_are_found_out_when_the_server_does_not_take_the_mean(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Weights that are not the numbers of examples it was told.
    monkeypatch.setattr(
        "server.strategy.FedKron._weight", lambda _, reply: 1.0 + reply.metadata.src_node_id % 2
    )
    verdict = random_dropouts(tiny, tmp_path, rounds=4, codec="fp32")
    assert not verdict.passed
    assert "off the mean" in verdict.wrong[0]


def test_damage_is_seen(tiny: Path, tmp_path: Path) -> None:
    reference_state(tiny_settings(tiny, tmp_path, "run"), NODES, all_answer)
    folder = tmp_path / "run"
    assert corrupt_files(folder) == ()
    read_run(folder)
    whole = {name: (folder / name).read_bytes() for name in (ADAPTER, CHECKPOINT, LEDGER, OUTCOME)}
    for name, content in whole.items():
        (folder / name).write_bytes(content[: len(content) // 2] + b"\n")
        assert corrupt_files(folder)[0].startswith(name)
        (folder / name).write_bytes(content)
    (folder / ".adapter.safetensors.1234").write_bytes(b"")
    assert len(corrupt_files(folder)) == 1


def test_what_is_wrong_is_never_as_expected(tiny: Path, tmp_path: Path) -> None:
    reference_state(tiny_settings(tiny, tmp_path, "run"), NODES, all_answer)
    right = verdict_of("x", "", tmp_path / "run", 2, Findings(), seconds=0.0)
    assert right.passed
    assert (right.lost_rounds, right.failures) == (0, 0)
    assert not replace(right, orphans=("flower-supernode",)).passed
    findings = Findings()
    findings.check(False, "good", "bad")
    assert not verdict_of("x", "", tmp_path / "run", 2, findings, seconds=0.0).passed


def test_one_wrong_scenario_is_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(tiny: Path, output: Path, *, rounds: int, codec: str) -> object:
        verdict = random_dropouts(tiny, output, rounds=2, codec=codec)
        assert rounds == chaos.ROUNDS
        return replace(verdict, wrong=("no",) if codec == "ecsq" else ())

    monkeypatch.setattr(chaos, "random_dropouts", wrong)
    figures = tmp_path / "figures.json"
    assert chaos.main(["--only", "dropouts", "--json", str(figures)]) == 1
    assert [verdict["passed"] for verdict in json.loads(figures.read_text())] == [True, False]
    assert "NO" in capsys.readouterr().out
