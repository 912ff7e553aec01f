"""Differential privacy through the real programs: what the settings ask for is done and written down."""

import json
from pathlib import Path

import numpy as np
import pytest
from federation_cases import Federation, federate, grid_of, run_config_for

from fedkron.cli import main
from fedkron.compression.payload import decode_vector
from fedkron.exchange import load_adapter
from fedkron.flower.wire import PAYLOAD
from fedkron.layout import flatten
from fedkron.privacy import epsilon
from fedkron.report import figures
from fedkron.rundir import ADAPTER, ROUNDS

NODES = 3
NORM = 0.1
CENTRAL = {"privacy.kind": "central"}
SETTINGS = {
    "head": "shared",
    "head-labels": "cat,dog",
    "codec.upload": "fp32",
    "codec.broadcast": "fp32",
    "privacy.clipping-norm": NORM,
}


def run(output: Path, base: Path, tasks: Path, *, ill: bool = False, **changes: object) -> Federation:
    given = {name.replace("__", ".").replace("_", "-"): value for name, value in changes.items()}
    config = run_config_for(output, base, tasks / "animals", changes={**SETTINGS, **given})
    grid = grid_of(config, NODES)
    if ill:
        grid.contexts[1002].node_config["task"] = str(tasks / "nowhere")
    return federate(config, grid)


def written(federation: Federation) -> list[dict]:
    return [json.loads(line) for line in (federation.folder / ROUNDS).read_text().splitlines()]


def updates(federation: Federation) -> list[np.ndarray]:
    layout = load_adapter(federation.folder / ADAPTER).layout
    replies = [m for m in federation.grid.up if m.metadata.message_type == "train" and not m.has_error()]
    return [decode_vector(m.content["arrays"][PAYLOAD], layout)[1] for m in replies]


def test_central_budget_is_written_each_round_and_reported(
    tmp_path: Path, tiny_bert: Path, tasks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    federation = run(tmp_path, tiny_bert, tasks, ill=True, **CENTRAL, privacy__noise_multiplier=2.0)
    assert federation.log.outcome == "completed"
    lines = written(federation)
    # The ill node was asked, too.
    assert [line["privacy"] for line in lines] == [
        {
            "epsilon": epsilon([2.0] * rounds, 1e-5),
            "delta": 1e-5,
            "rounds": rounds,
            "clipping_norm": NORM,
        }
        for rounds in (1, 2)
    ]
    assert [len(line["failures"]) for line in lines if "nowhere" in line["failures"][0]] == [2, 2]
    assert [r["privacy"] for r in figures(federation.log)["rounds"]] == [line["privacy"] for line in lines]
    assert main(["report", str(federation.folder)]) == 0
    spent = f"{lines[-1]['privacy']['epsilon']:.3g}"
    assert f"(central): ε = {spent} at δ = 1e-05" in " ".join(capsys.readouterr().out.split())


def test_central_run_moves_by_the_norm_at_most_and_differs_each_time(
    tmp_path: Path, tiny_bert: Path, tasks: Path
) -> None:
    silent = [
        run(
            tmp_path / str(i), tiny_bert, tasks, **CENTRAL, privacy__noise_multiplier=0.0, num_server_rounds=i
        )
        for i in (1, 2)
    ]
    one, two = (flatten(f.state, f.layout) for f in (load_adapter(s.folder / ADAPTER) for s in silent))
    assert min(float(np.linalg.norm(update)) for update in updates(silent[0])) > NORM
    assert 0 < np.linalg.norm(two - one) <= NORM * (1 + 1e-5)
    assert written(silent[1])[-1]["privacy"]["epsilon"] is None
    noisy = [
        load_adapter(run(tmp_path / f"noisy-{i}", tiny_bert, tasks, **CENTRAL).folder / ADAPTER).state
        for i in (1, 2)
    ]
    assert all(not np.array_equal(noisy[0][name], noisy[1][name]) for name in noisy[0])


@pytest.mark.parametrize("other", [{}, {"aggregation": "merged"}, {"robust__rule": "mean"}])
def test_local_run_sends_noise_of_the_size_that_was_set_and_no_measurement(
    other: dict[str, object], tmp_path: Path, tiny_bert: Path, tasks: Path
) -> None:
    noise = 0.5
    settings = {"privacy.kind": "local", "privacy.noise-multiplier": noise, **other}
    federation = run(tmp_path, tiny_bert, tasks, **settings)
    for update in updates(federation):
        # What is clipped adds at most NORM² to the sum of squares.
        squares = float(np.sum(update.astype(np.float64) ** 2)) / (noise * NORM) ** 2
        least, most = update.size, update.size + noise**-2
        assert least - 5 * np.sqrt(2 * least) < squares < most + 5 * np.sqrt(2 * most)
    for reply in federation.grid.up:
        if reply.metadata.message_type == "train":
            assert dict(reply.content["metrics"]) == {"num-examples": 1}
    assert [line["privacy"]["epsilon"] for line in written(federation)] == [
        epsilon([noise / 2] * rounds, 1e-5) for rounds in (1, 2)
    ]
    assert [entry.train_loss for entry in federation.log.rounds] == [None, None]


def test_a_run_without_privacy_says_nothing_of_it(
    tmp_path: Path, tiny_bert: Path, tasks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    federation = run(tmp_path, tiny_bert, tasks)
    assert [line["privacy"] for line in written(federation)] == [None, None]
    assert main(["report", str(federation.folder)]) == 0
    assert "ε" not in capsys.readouterr().out
