"""The real path: `fedkron run` starts Flower's own SuperLink, and Flower says how the run ended."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from uuid import uuid4

import psutil
from federation_cases import federate, grid_of, run_config_for

from fedkron.audit import verify
from fedkron.base import load_base
from fedkron.commands.runconfig import as_toml
from fedkron.exchange import load_adapter, load_head
from fedkron.rundir import (
    ADAPTER,
    AUDIT,
    CHECKPOINT,
    FLOWER_LOG,
    HEAD,
    LEDGER,
    NODES,
    OUTCOME,
    REPORT,
    ROUNDS,
    SETTINGS,
    TENSORBOARD,
)
from fedkron.runlog import read_run

ROOT = Path(__file__).resolve().parent.parent.parent
MARK = "FEDKRON_TEST_RUN"
"""Environment variable that every process of a run inherits, so that what is left of it can be found."""


def fedkron_run(
    output: Path, *pairs: str, options: Sequence[object] = ()
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Run the command on this repository from a folder that is not it; also what is left running."""
    mark = str(uuid4())
    given = ("-c", " ".join([*pairs, "num-server-rounds=1", f'output-dir="{output}"', 'run-name="real"']))
    done = subprocess.run(
        [sys.executable, "-m", "fedkron.cli", "run", str(ROOT), "--json", *map(str, options or given)],
        env={**os.environ, MARK: mark, "PYTHONPATH": str(ROOT)},
        cwd=output,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    return done, processes_of(mark)


def processes_of(mark: str, patience: float = 15.0) -> list[str]:
    """Command lines of the processes that carry the mark, once those that are just ending have ended."""
    deadline = time.monotonic() + patience
    while left := [" ".join(process.info["cmdline"] or []) for process in marked(mark)]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.5)
    return left


def marked(mark: str) -> list[psutil.Process]:
    found = psutil.process_iter(["environ", "cmdline"], ad_value=None)
    return [process for process in found if (process.info["environ"] or {}).get(MARK) == mark]


def test_real_run_completes_and_leaves_its_folder_and_nothing_else(tmp_path: Path) -> None:
    done, left = fedkron_run(
        tmp_path,
        'tasks="demo:trec,demo:spam"',
        "train.max-train-examples=16",
        "train.max-test-examples=16",
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert (figures["status"], figures["error"]) == ("completed", None)
    assert figures["total_bytes"]["payload_up"] > 0

    folder = tmp_path / "real"
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    heads = {f"{NODES}/trec-0/{HEAD}", f"{NODES}/spam-1/{HEAD}"}
    (run_id,) = (path.name for path in (folder / NODES / "trec-0" / "state").iterdir())
    states = {f"{NODES}/{node}/state/{run_id}/round-1.safetensors" for node in ("trec-0", "spam-1")}
    expected = {SETTINGS, ADAPTER, CHECKPOINT, ROUNDS, LEDGER, OUTCOME, REPORT, FLOWER_LOG, AUDIT}
    (scalars,) = (name for name in files if name.startswith(f"{TENSORBOARD}/"))
    assert files - {f".{AUDIT}.lock", scalars} == expected | heads | states | {"audit-head.json"}
    assert verify(folder).rounds == 1
    assert [path.name for path in tmp_path.iterdir()] == ["real"]
    log = read_run(folder)
    assert log.rounds[0].failures == ()
    assert {name: task.clients for name, task in log.rounds[0].tasks.items()} == {"trec": 1, "spam": 1}
    adapter = load_adapter(folder / ADAPTER)
    assert adapter.layout.base == load_base("demo:all-minilm-l6-v2").fingerprint
    assert {load_head(folder / head).contract for head in heads} == {adapter.layout.contract}
    assert left == []


def test_real_run_is_gone_on_with_and_has_the_bytes_of_one_in_one_process_that_was_never_over(
    tmp_path: Path, tiny_bert: Path, tasks: Path
) -> None:
    given = [tasks / "animals", tasks / "colours"]
    small = {"adapter.rank": 8, "adapter.d-a2": 4, "codec.upload": "ecsq:0.7", "num-server-rounds": 2}
    config = run_config_for(tmp_path / "whole", tiny_bert, *given, changes=small)
    whole = federate(config, grid_of(config, 2)).folder
    settings = {key: value for key, value in config.items() if key not in ("output-dir", "run-name")}
    (tmp_path / "config.toml").write_text(as_toml(settings | {"num-server-rounds": 1}))
    place = f'output-dir="{tmp_path}" run-name="real"'
    first, _ = fedkron_run(tmp_path, options=("-c", tmp_path / "config.toml", "-c", place))
    assert first.returncode == 0, first.stderr
    again = fedkron_run(tmp_path, options=("--resume", tmp_path / "real"))[0]
    assert again.returncode == 1
    assert "has finished its 1 rounds: to go on, give it more" in again.stderr
    resumed, left = fedkron_run(
        tmp_path, options=("--resume", tmp_path / "real", "-c", "num-server-rounds=2")
    )
    assert resumed.returncode == 0, resumed.stderr
    assert left == []
    ours, theirs = (load_adapter(folder / ADAPTER).state for folder in (tmp_path / "real", whole))
    assert ours.keys() == theirs.keys()
    for name, values in ours.items():
        assert values.tobytes() == theirs[name].tobytes()
    assert [entry.round for entry in read_run(tmp_path / "real").rounds] == [1, 2]
    assert verify(tmp_path / "real").rounds == 2


def test_real_run_that_fails_ends_with_one_clear_message_and_nothing_left(
    tmp_path: Path, tiny_bert: Path
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "train.jsonl").write_text('{"text": "no labels.json, no test.jsonl", "label": 0}\n')
    done, left = fedkron_run(tmp_path, f'tasks="{broken}"', f'base="{tiny_bert}"', "adapter.d-a2=4")
    assert done.returncode == 1
    assert done.stdout == ""
    (message,) = [line for line in done.stderr.splitlines() if line.startswith("fedkron: ")]
    assert "the run ended as finished:failed: RunError: round 1: 1 of 1 clients failed in training" in message
    assert f": TaskError: {broken / 'test.jsonl'} is missing: a task folder must have it." in message
    assert "Traceback" not in done.stderr
    assert read_run(tmp_path / "real").outcome == "failed"
    assert left == []
