"""The benchmark of secure aggregation: its figures fit together, and its quick run goes through."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.secure_study.sizes import BITS, GOAL, exchange, packed
from benchmarks.secure_study.speed import speed

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("nodes", "levels"),
    [*((n, 2) for n in (4, 8, 16, 32)), *((n, 3) for n in (4, 8, 16)), (4, 5), (8, 5), (4, 255)],
)
def test_the_combinations_that_are_said_to_meet_the_goal_do(nodes: int, levels: int) -> None:
    row = packed(nodes, levels)
    assert row.bits <= GOAL * BITS[row.codec]
    assert row.times_less_than_secagg_plus == pytest.approx(64 / row.bits)


def test_an_upload_takes_what_its_packing_says_and_little_more() -> None:
    masked = exchange(4, 20_000, levels=5)
    plain = exchange(4, 20_000, codec="int4")
    assert (masked.messages_per_node, plain.messages_per_node) == (8, 2)
    codes = 20_000 * packed(4, 5).bits / 8
    assert codes < masked.up < codes + 5000
    assert 20_000 * 4.25 / 8 < plain.up < codes + 5000
    assert masked.down > plain.down


def test_a_round_with_nodes_that_vanish_is_timed_to_its_end() -> None:
    found = speed(5000, nodes=5, gone=1, levels=3)
    assert (found.parameters, found.nodes, found.gone) == (5000, 5, 1)
    assert found.node_ms == pytest.approx(found.keys_ms + found.shares_ms + found.mask_ms + found.reveal_ms)
    assert min(found.shares_ms, found.mask_ms, found.server_ms, found.flower_ms) > 0


def test_quick_run(tmp_path: Path) -> None:
    target = tmp_path / "secure.json"
    command = [sys.executable, "-m", "benchmarks.secure", "--quick", "--json", str(target)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    report = json.loads(target.read_text())
    assert report.keys() == {"packed", "exchanges", "speed", "accuracy"}
    assert len(report["packed"]) == 20
    assert len(report["exchanges"]) == 2 * 8
    assert {row["gone"] for row in report["speed"]} == {0, 2}
    assert report["accuracy"].keys() == {"int4", "masked, 5 levels"}
    up = {name: found[0]["up"][0] for name, found in report["accuracy"].items()}
    assert all(count > 10_000 for count in up.values())
    assert "Bits per parameter" in done.stdout
