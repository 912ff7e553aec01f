"""Names that come from elsewhere lead nowhere else."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedkron.errors import ConfigError
from fedkron.rundir import folder_name, group_directory, node_directory
from fedkron.settings import Settings

HOSTILE = [
    *("..", ".", "", "/", "../..", "a/../../b", "/etc", "a/b", "a\\..\\b", "C:\\x", "C:x", "\0", "a\0b"),
    *("~root", "a~b", "...", ".hidden", "a.", "x" * 5000, "ü" * 300, "\ud800", "a\nb", "-rf", "CON:"),
]
names = st.text(st.characters() | st.sampled_from("./\\:~\0"), max_size=100)
settings = Settings.from_run_config({"output-dir": "/outputs", "run-name": "run"})


def check_is_one_folder(path: Path, parent: Path, root: Path) -> None:
    assert path.parent == parent
    assert path.name not in ("", ".", "..")
    assert set(path.name).isdisjoint("/\\:\0")
    # A component may have 255 bytes.
    assert len(path.name.encode()) <= 255
    (root / path.name).mkdir(exist_ok=True)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_stay_where_they_belong(name: str, tmp_path: Path) -> None:
    check_is_one_folder(group_directory(Path("/run"), name), Path("/run/groups"), tmp_path)
    nodes = Path("/outputs/run/nodes")
    check_is_one_folder(node_directory(settings, 1, name, 0), nodes, tmp_path)


@given(name=names)
def test_any_name_is_that_of_one_folder(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.getbasetemp()
    check_is_one_folder(group_directory(Path("/run"), name), Path("/run/groups"), root)


@given(one=names, other=names)
def test_no_two_names_share_a_folder(one: str, other: str) -> None:
    assert (folder_name(one) == folder_name(other)) == (one == other)
    # Nor does a name that is made to look like another's folder.
    assert folder_name(folder_name(one)) == folder_name(one) or "~" in folder_name(one)
    assert folder_name(one) != folder_name(folder_name(other)) or one == folder_name(other)


def test_plain_names_are_kept() -> None:
    for name in ("trec", "a_b-1.2", "tür", "cluster-0"):
        assert folder_name(name) == name


@pytest.mark.parametrize("name", ["a/b", "/a", "..", ".x", "a\\b", "C:x", "a\0b", "../x"])
def test_run_names_are_plain(name: str) -> None:
    with pytest.raises(ConfigError, match="must be a plain folder name"):
        Settings.from_run_config({"run-name": name})
