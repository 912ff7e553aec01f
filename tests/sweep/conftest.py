"""A finished run, made by the real programs within this process, whose folder stands for those of cells."""

from pathlib import Path

import pytest
from federation_cases import federate, grid_of, run_config_for


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path, tasks: Path) -> Path:
    config = run_config_for(tmp_path_factory.mktemp("runs"), tiny_bert, tasks / "animals", tasks / "colours")
    return federate(config, grid_of(config, 2)).folder
