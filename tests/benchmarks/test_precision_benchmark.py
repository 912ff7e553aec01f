"""The benchmark of bf16: its quick run goes through, and says what it measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_quick_run(tmp_path: Path) -> None:
    target = tmp_path / "precision.json"
    command = [sys.executable, "-m", "benchmarks.precision", "--quick", "--json", str(target)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = json.loads(target.read_text())
    held = {row["way"]["dtype"]: row["base_bytes"] for row in rows}
    assert held["float32"] == 2 * held["bfloat16"]
    ways = {(row["way"]["adapter"], row["way"]["precision"], row["way"]["dtype"]) for row in rows}
    assert len(rows) == len(ways) == 5
    assert all(len(row["seconds"]) == 1 and row["seconds"][0] > 0 for row in rows)
    assert all(0 <= accuracy <= 1 for row in rows for accuracy in row["accuracy"])
    assert "PEFT LoRA-8" in done.stdout
