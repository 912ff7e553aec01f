"""What a sweep file asks for, against itertools; and what is wrong with it, all of it at once."""

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedkron.commands.run_settings import app_config, read_settings
from fedkron.errors import ConfigError
from fedkron.settings import Settings, run_config
from fedkron.sweep.grid import expanded, read_grid

ROOT = Path(__file__).resolve().parents[2]


def as_it_is(settings: Settings) -> Settings:
    return settings


def grid_file(folder: Path, text: str) -> Path:
    file = folder / "mine.toml"
    file.write_text(text)
    return file


@given(
    st.dictionaries(
        st.sampled_from(["seed", "aggregation", "adapter.rank", "train.epochs", "nodes"]),
        st.lists(st.integers(0, 9), min_size=1, max_size=4),
        max_size=4,
    )
)
def test_every_combination_is_there_once_and_the_last_key_varies_fastest(grid: dict[str, list[int]]) -> None:
    wanted = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    assert expanded(grid) == wanted


def test_tables_set_keys_together_and_nested_tables_are_dotted_keys() -> None:
    codecs = [{"upload": "int4", "broadcast": "int8"}, {"upload": "ecsq", "broadcast": "ecsq"}]
    ways = [{"adapter.kind": "lora", "aggregation": "merged"}, {"adapter": {"kind": "krona"}}]
    found = expanded({"codec": codecs, "train": {"epochs": [1, 2]}, "way": ways})
    assert found == [
        {"codec.upload": c["upload"], "codec.broadcast": c["broadcast"], "train.epochs": epochs, **way}
        for c in codecs
        for epochs in (1, 2)
        for way in ({"adapter.kind": "lora", "aggregation": "merged"}, {"adapter.kind": "krona"})
    ]


def test_cells_are_the_settings_that_a_run_with_these_values_would_have(tmp_path: Path) -> None:
    file = grid_file(
        tmp_path,
        """
        [run]
        tasks = "demo:trec,demo:spam"
        [run.train]
        learning-rate = 1e-3
        [grid]
        "adapter.kind" = ["kron_lora", "lora"]
        seed = [0, 1]
        nodes = [4, 8]
        """,
    )
    grid = read_grid(file, app_config(ROOT), as_it_is)
    assert grid.keys == ("adapter.kind", "seed", "nodes")
    wanted = list(itertools.product(["kron_lora", "lora"], [0, 1], [4, 8]))
    assert [tuple(cell.varied.values()) for cell in grid.cells] == wanted
    for cell, (kind, seed, nodes) in zip(grid.cells, wanted, strict=True):
        pairs = f'tasks="demo:trec,demo:spam" train.learning-rate=1e-3 adapter.kind="{kind}" seed={seed}'
        alone = run_config(read_settings(ROOT, [pairs])) | {"run-name": ""}
        assert (run_config(cell.settings), cell.simulation.nodes) == (alone, nodes)
        assert cell.name.startswith(f"{kind}-seed{seed}-nodes{nodes}-")
    assert len({cell.name for cell in grid.cells}) == 8


def test_names_depend_on_a_cells_own_settings_and_on_nothing_else(
    tmp_path: Path,
) -> None:
    def names(text: str) -> set[str]:
        return {cell.name for cell in read_grid(grid_file(tmp_path, text), app_config(ROOT), as_it_is).cells}

    small = names("[grid]\nseed = [0, 1]")
    assert small < names("[grid]\nseed = [0, 1, 2]")
    assert small.isdisjoint(names("[run]\nnum-server-rounds = 7\n[grid]\nseed = [0, 1]"))
    assert small.isdisjoint(names("[run]\nnodes = 9\n[grid]\nseed = [0, 1]"))
    assert small == names("[run]\nnodes = 4\n[grid]\nseed = [0, 1]")  # four tasks: four nodes anyway


def test_excluded_cells_are_left_out_and_included_ones_added_once(tmp_path: Path) -> None:
    file = grid_file(
        tmp_path,
        """
        [grid]
        "adapter.kind" = ["kron_lora", "lora"]
        "codec.upload" = ["fp32", "int4", "ecsq"]
        [[exclude]]
        "adapter.kind" = "lora"
        codec.upload = ["int4", "ecsq"]
        [[include]]
        "adapter.kind" = "kron_lora"
        "codec.upload" = "ecsq"
        [[include]]
        "adapter.kind" = "krona"
        "adapter.rank" = [2, 4]
        """,
    )
    found = [
        (cell.varied["adapter.kind"], cell.varied["codec.upload"], cell.varied["adapter.rank"])
        for cell in read_grid(file, app_config(ROOT), as_it_is).cells
    ]
    assert found == [
        ("kron_lora", "fp32", 8),
        ("kron_lora", "int4", 8),
        ("kron_lora", "ecsq", 8),
        ("lora", "fp32", 8),
        ("krona", "ecsq", 2),
        ("krona", "ecsq", 4),
    ]


def test_all_that_is_wrong_is_named_at_once_with_its_cells(tmp_path: Path) -> None:
    file = grid_file(
        tmp_path,
        """
        [grid]
        aggregation = ["factorwise", "alternating", "avreage"]
        "groups.by" = ["task"]
        seed = [0, 1]
        """,
    )
    with pytest.raises(ConfigError) as caught:
        read_grid(file, app_config(ROOT), as_it_is)
    head, *lines = str(caught.value).splitlines()
    assert head.endswith("4 of 6 cells cannot run:")
    assert len(lines) == 2
    assert "'groups.by' is 'task'" in lines[0]
    assert "aggregation=alternating groups.by=task seed=1" in lines[0]
    assert "'avreage': it must be one of factorwise" in lines[1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[grid]\nnonsense = [1]", "'nonsense' does not exist"),
        ("[gird]\nseed = [1]", "'gird'"),
        ("[grid]\nseed = []", "'seed' is an empty list"),
        ("grid = 3", "must be a table"),
        ("exclude = 3", "must be tables"),
        ("[grid]\nseed = ['a']", "must be of type int"),
        ("[run]\nnodes = 0", "'nodes' is 0"),
        ("[run]\ncpus-per-node = 0.5", "'cpus-per-node' is 0.5"),
        ("[run]\noutput-dir = 'here'", "'output-dir' is 'here'"),
        ("[grid]\nrun-name = ['a', 'b']", "'run-name' is 'a'"),
        ("[grid]\nseed = [1]\n[[exclude]]\nseed = 2", "fits no cell"),
        ("[grid]\nseed = [1]\n[[exclude]]\nseed = 1", "has no cells"),
        ("[grid]\ncodec.upload = ['int4']\ncodec2 = [{codec.upload = 'int8'}]", "set twice"),
        ("[grid", "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mine\.toml|key|list|exclude|twice") as caught:
        read_grid(grid_file(tmp_path, text), app_config(ROOT), as_it_is)
    assert words in str(caught.value)


def test_the_example_is_valid() -> None:
    assert len(read_grid(ROOT / "simulations" / "sweep.toml", app_config(ROOT), as_it_is).cells) == 8
