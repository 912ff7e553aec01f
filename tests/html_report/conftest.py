"""Runs that reports are made of, by the real programs."""

import shutil
from pathlib import Path

import pytest
from federation_cases import federate, grid_of, run_config_for
from report_cases import HOSTILE, NOWHERE, RUN

from fedkron.runlog import RunLog


@pytest.fixture(scope="session")
def eventful(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path, tasks: Path) -> RunLog:
    """Three rounds with projection; the last of three nodes always fails, the second has a hostile name."""
    folder = tmp_path_factory.mktemp("eventful")
    hostile = shutil.copytree(tasks / "quiz", folder / HOSTILE)
    changes = {"aggregation": "merged", "num-server-rounds": 3, "run-name": RUN}
    config = run_config_for(
        folder / "runs", tiny_bert, tasks / "animals", hostile, folder / NOWHERE, changes=changes
    )
    return federate(config, grid_of(config, 3)).log


@pytest.fixture(scope="session")
def private(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path, tasks: Path) -> RunLog:
    """Two rounds of three nodes under central differential privacy."""
    changes = {"privacy.kind": "central", "privacy.noise-multiplier": 2.0, "run-name": "private", "seed": 3}
    config = run_config_for(
        tmp_path_factory.mktemp("private"), tiny_bert, tasks / "animals", tasks / "colours", changes=changes
    )
    return federate(config, grid_of(config, 3)).log
