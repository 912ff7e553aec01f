"""The benchmark of large simulations: its quick run goes through, and its figures fit together."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.scale_study.watch import REST, watched

ROOT = Path(__file__).parents[2]


def test_what_is_watched_is_what_was_started_and_no_more() -> None:
    program = """
import subprocess, sys, time
child = subprocess.Popen(
    [sys.executable, "-c", "import time; x = bytearray(80_000_000); time.sleep(3)"], start_new_session=True
)
end = time.process_time() + 1.5
while time.process_time() < end: pass
child.wait()
print("done")
"""
    found = watched([sys.executable, "-c", program], {})
    assert found.output == "done\n"
    assert found.processes[REST] == 2
    assert found.single[REST] > 80_000_000
    assert found.memory[REST] >= found.single[REST]
    # The last look is half a second before the end at most; the child takes next to nothing.
    assert 0.7 < found.cpu_seconds < 3
    assert found.wall > found.cpu_seconds


def test_what_fails_is_told() -> None:
    with pytest.raises(subprocess.CalledProcessError) as failed:
        watched([sys.executable, "-c", "import sys; print('why', file=sys.stderr); sys.exit(3)"], {})
    assert failed.value.returncode == 3
    assert failed.value.stderr == "why\n"


def test_quick_run(tmp_path: Path) -> None:
    target = tmp_path / "scale.json"
    command = [sys.executable, "-m", "benchmarks.simulation_scale", "--quick", "--json", str(target)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    [found] = json.loads(target.read_text())
    taken, pure = found["ours"]["taken"], found["ours"]["pure"]
    # A base for each worker, however many nodes and rounds it has served.
    assert found["base_loads"] == taken["processes"]["workers"] > 0
    assert len(found["rounds"]) == found["workload"]["rounds"]
    assert found["start"] + sum(found["rounds"]) + found["end"] == pytest.approx(taken["wall"])
    assert found["overheads"]["ours"]["overhead"] == pytest.approx(taken["wall"] / pure["wall"] - 1)
    assert 0 < pure["train_cpu"] < sum(taken["cpu"].values())
    assert found["pieces"]["training"] > found["pieces"]["tokens"] > 0
    assert found["pieces"]["all of a node"] > found["pieces"]["training"] + found["pieces"]["encoding"]
    assert 0 < found["files"]["keeping_nodes"] <= found["workload"]["nodes"]
    assert "overhead" in done.stdout
