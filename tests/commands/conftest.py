"""One small federated run with its bundle, made by the real programs and the real command."""

from pathlib import Path

import pytest
from command_cases import Finished
from federation_cases import federate, grid_of, run_config_for

from fedkron.cli import main


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path, tasks: Path) -> Finished:
    config = run_config_for(tmp_path_factory.mktemp("runs"), tiny_bert, tasks / "animals", tasks / "quiz")
    run = federate(config, grid_of(config, 2)).folder
    bundle = run.parent / "bundle"
    assert main(["export", str(run), "-o", str(bundle)]) == 0
    return Finished(run, tiny_bert, bundle)
