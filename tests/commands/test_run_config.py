"""Run configs are read as Flower reads them, except that nothing is dropped in silence."""

import json
import tomllib
from pathlib import Path

import pytest
from flwr.common.config import parse_config_args
from hypothesis import given
from hypothesis import strategies as st

from fedkron.cli import main
from fedkron.commands.run_settings import read_settings
from fedkron.commands.runconfig import as_toml, flattened, read_run_config
from fedkron.errors import ConfigError
from fedkron.settings import Settings

ROOT = Path(__file__).resolve().parents[2]

KEYS = st.from_regex(r"[a-z][a-z0-9]{0,6}(-[a-z]{1,4})?(\.[a-z]{1,5})?", fullmatch=True)
VALUES = st.one_of(
    st.booleans(),
    st.integers(-(2**40), 2**40),
    st.floats(allow_nan=False, allow_infinity=False, width=32),
    st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters='"\\'), max_size=12),
)


@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_pairs_give_back_the_values_that_were_written(config: dict[str, object]) -> None:
    assert read_run_config(" ".join(f"{key}={json.dumps(value)}" for key, value in config.items())) == config


@pytest.mark.parametrize(
    "text", ['seed=3 run-name="a b"', "train.epochs=2 fraction-train=0.5", "a=true b=false"]
)
def test_pairs_mean_what_they_mean_to_flower(text: str) -> None:
    assert read_run_config(text) == parse_config_args([text])


def test_spaces_around_the_equals_sign_are_understood() -> None:
    assert read_run_config("seed = 3  run-name = 'x'") == {"seed": 3, "run-name": "x"}


@pytest.mark.parametrize(
    "text", ["seed", "seed=", "seed=3 oops", 'name="open', "=3", "a=1,b=2 =", "base=my/base"]
)
def test_what_is_not_pairs_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"run config|run-config"):
        read_run_config(text)


def test_a_file_may_have_tables_and_later_configs_win(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('seed = 5\n[train]\nepochs = 4\n[codec]\nupload = "int8"\n')
    settings = read_settings(ROOT, [str(file), "train.epochs=2"])
    assert (settings.seed, settings.train.epochs, settings.codec.upload) == (5, 2, "int8")


def test_the_demo_configuration_is_valid() -> None:
    assert isinstance(read_settings(ROOT, [str(ROOT / "simulations" / "demo.toml")]), Settings)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ('codec.upload="int5"', ["codec.upload", "int5", "int4"]),
        ("nonsense=3", ["nonsense", "num-server-rounds"]),
        ('tasks="no/such/folder"', ["no/such/folder", "train.jsonl", "demo:trec"]),
        ('tasks="demo:weather"', ["weather", "demo:trec"]),
        ("adapter.rank=0", ["adapter.rank", "0"]),
        ('seed="3"', ["seed", "int"]),
        ("no-such-file.toml", ["no-such-file.toml"]),
        ("rubbish", ["rubbish", "KEY=VALUE"]),
    ],
)
def test_a_bad_run_config_stops_before_anything_is_started(
    config: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "runs"
    assert main(["run", str(ROOT), "-c", f'output-dir="{output}"', "-c", config]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert all(word in error for word in words)
    assert not output.exists()


def test_a_run_folder_is_never_used_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    taken = tmp_path / "mine"
    taken.mkdir()
    (taken / "settings.json").write_text("{}")
    assert main(["run", str(ROOT), "-c", f'output-dir="{tmp_path}" run-name="mine"']) == 1
    assert "is taken" in capsys.readouterr().err


def test_an_app_needs_a_pyproject(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(tmp_path)]) == 1
    assert "pyproject.toml" in capsys.readouterr().err


def test_a_simulation_gets_no_fewer_cores_than_a_node_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(ROOT), "--cpus", "2", "--cpus-per-node", "3"]) == 1
    assert "--cpus is 2: a node needs --cpus-per-node = 3" in capsys.readouterr().err


@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_a_config_written_as_toml_is_read_back(config: dict[str, object]) -> None:
    assert flattened(tomllib.loads(as_toml(nested_last(config)))) == nested_last(config)


def nested_last(config: dict[str, object]) -> dict[str, object]:
    """Without keys that are a table's name in another one, which no settings have."""
    return {key: value for key, value in config.items() if not any(k.startswith(f"{key}.") for k in config)}
