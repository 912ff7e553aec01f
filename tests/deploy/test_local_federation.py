"""A real federation on this machine: TLS, node keys, a run by the command, and nothing that outlives it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import psutil
import pytest
from federation_cases import run_config_for

from fedkron.deploy.keys import issue_node
from fedkron.deploy.local import local_federation
from fedkron.deploy.supervisor import tail
from fedkron.errors import RunError
from fedkron.exchange import load_adapter
from fedkron.rundir import ADAPTER, LOGS, NODES
from fedkron.runlog import read_run

ROOT = Path(__file__).resolve().parents[2]
MARK = "FEDKRON_TEST_FEDERATION"
"""Environment variable that every process of a federation inherits, to find what is left of it."""


def left(mark: str) -> list[str]:
    found = psutil.process_iter(["environ", "cmdline"], ad_value=None)
    return [str(p.info["cmdline"]) for p in found if (p.info["environ"] or {}).get(MARK) == mark]


def until(true: Callable[[], bool], patience: float = 60) -> None:
    deadline = time.monotonic() + patience
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_the_command_runs_a_federation_and_leaves_its_folder_and_no_process(
    tmp_path: Path, tiny_bert: Path, tasks: Path
) -> None:
    mark = str(uuid4())
    config = run_config_for(
        tmp_path, tiny_bert, tasks / "animals", tasks / "colours", changes={"num-server-rounds": 1}
    )
    pairs = " ".join(f"{key}={json.dumps(value)}" for key, value in config.items())
    command = [sys.executable, "-m", "fedkron.cli", "federation", str(ROOT), "--json", "--quiet", "-c", pairs]
    done = subprocess.run(
        command,
        env={**os.environ, MARK: mark, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert left(mark) == []
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert (figures["status"], figures["error"]) == ("completed", None)
    log = read_run(tmp_path / "run")
    assert log.rounds[0].failures == ()
    assert {name: task.clients for name, task in log.rounds[0].tasks.items()} == {"animals": 1, "colours": 1}
    assert load_adapter(log.folder / ADAPTER).state
    assert {path.name for path in (log.folder / NODES).iterdir()} == {"animals-0", "colours-1"}
    logs = {path.name for path in (log.folder / LOGS).iterdir()}
    assert logs == {"superlink.log", "superexec.log", "node0.log", "node1.log"}


def test_a_node_that_is_not_registered_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = str(uuid4())
    monkeypatch.setenv(MARK, mark)
    with local_federation(["partition-id=0 num-partitions=1"], tmp_path, lambda _: None) as running:
        issue_node(running.folder / "stranger")
        stranger = running.node_program(
            "stranger", running.folder / "stranger" / "node.key", "partition-id=1"
        )
        running.supervisor.start(stranger)
        until(lambda: running.supervisor.deaths("stranger") > 0)
        assert "Failed to activate SuperNode" in tail(stranger.log, 50)
        assert "SuperNode ID" not in stranger.log.read_text()
        assert running.connection.node_statuses() == {running.nodes["node0"]: "online"}
        assert running.supervisor.deaths("node0") == 0
    assert left(mark) == []


def test_what_does_not_come_up_is_shown_with_its_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = str(uuid4())
    monkeypatch.setenv(MARK, mark)
    monkeypatch.setattr("fedkron.deploy.local.START_DEATHS", 1)
    with (
        pytest.raises(RunError, match=r"node0 keeps dying(.|\n)*node0\.log(.|\n)*invalid format"),
        local_federation(["partition-id=nonsense"], tmp_path, lambda _: None),
    ):
        raise AssertionError
    assert left(mark) == []
