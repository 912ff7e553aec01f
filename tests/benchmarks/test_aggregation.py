"""The benchmark of aggregation: what it feeds, and that the figures of a quick run fit together."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.adapter_contest.timing import Spread
from benchmarks.aggregation_scale.clients import DIFFERENT, load, payloads, save, weight
from benchmarks.aggregation_scale.growth import Growth
from benchmarks.aggregation_scale.models import lora_reply, mistral
from benchmarks.aggregation_scale.report import Row, goals
from fedkron.compression.payload import decode_vector, inspect_header
from fedkron.layout import AdapterLayout

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def layout() -> AdapterLayout:
    return mistral(1)


def test_the_layout_is_that_of_a_mistral_with_its_head(layout: AdapterLayout) -> None:
    # Seven linear layers of 4096, 1024 and 14,336, and lm_head of 32,000; A is 16 × 2, ranks are 8.
    assert layout.size == sum(
        32 + 8 * (d_out // 16) + 8 * (d_in // 2)
        for d_out, d_in in [
            *[(4096, 4096)] * 2,
            *[(1024, 4096)] * 2,
            *[(14_336, 4096)] * 2,
            (4096, 14_336),
            (32_000, 4096),
        ]
    )


def test_flower_gets_a_lora_of_the_same_layers(layout: AdapterLayout) -> None:
    arrays = lora_reply(layout).array_records["arrays"]
    assert len(arrays) == 2 * len(layout.modules)
    assert sum(array.numpy().size for array in arrays.values()) == layout.lora_size(8)
    for module in layout.modules:
        product = arrays[f"{module.path}.lora_B"].shape[0], arrays[f"{module.path}.lora_A"].shape[1]
        assert product == module.weight_shape


def test_payloads_differ_and_come_back_from_a_folder(layout: AdapterLayout, tmp_path: Path) -> None:
    blobs = payloads(layout, "int4")
    assert len(set(blobs)) == DIFFERENT
    save(tmp_path / "int4", layout, blobs)
    assert load(tmp_path / "int4") == (layout, blobs)
    header, vector = decode_vector(blobs[0], layout)
    assert header == inspect_header(blobs[0])
    assert np.sqrt(np.mean(vector**2)) == pytest.approx(0.003, rel=0.05)


def test_a_hundred_clients_have_all_weights_from_1_to_100() -> None:
    assert sorted(weight(client) for client in range(100)) == list(range(1, 101))


def row(passes: float, flower: float) -> Row:
    one = Spread(1, 1, 1)
    figures = {"passes": Spread(passes, 1, 9), "flower": Spread(flower, 1, 99)}
    rest = ("check", "header", "add", "whole", "clients_per_second", "fused")
    return Row("int4", "numba", 1, **dict.fromkeys(rest, one), **figures)


def aggregated(clients: int, seconds: float, memory: int) -> Growth:
    return Growth("factorwise", "int4", 32, clients, seconds, 0, 0, memory, memory, clients / seconds)


def test_goals_are_reached_at_their_bounds_and_missed_beyond() -> None:
    assert [goal.holds for goal in goals([row(5, 10)], [])] == [True, True]
    assert [goal.holds for goal in goals([row(5.1, 9.9)], [])] == [False, False]


def test_a_start_that_takes_time_and_memory_that_is_not_touched_yet_are_not_growth() -> None:
    linear = [aggregated(10, 9, 5), *(aggregated(10**k, 3 + 10 ** (k - 2), 9) for k in (2, 3, 4))]
    assert [(goal.holds, goal.figure) for goal in goals([row(1, 50)], linear)[2:]] == [
        (True, 1.0),
        (True, pytest.approx(1.0)),
    ]
    growing = [aggregated(100, 0.1, 9), aggregated(1000, 1, 9), aggregated(10_000, 100, 90)]
    assert [(goal.holds, goal.figure) for goal in goals([row(1, 50)], growing)[2:]] == [
        (False, 10.0),
        (False, pytest.approx(11.0)),
    ]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("report") / "figures.json"
    command = [sys.executable, "benchmarks/aggregation.py", "--quick", "--rounds", "2"]
    subprocess.run(
        [*command, "--clients", "3", "100", "150", "200", "--json", str(path)],
        cwd=ROOT,
        check=True,
        timeout=120,
    )
    return json.loads(path.read_text(encoding="utf-8"))


def test_a_quick_run_measures_every_codec_and_all_that_they_are_compared_with(report: dict[str, Any]) -> None:
    assert [(found["codec"], found["way"]) for found in report["codecs"]] == [
        *(("int4", "numba"), ("int4", "numpy"), ("int8", "numba"), ("int8", "numpy"), ("ecsq", "numpy"))
    ]
    assert len(report["references"]) == 6
    layout = mistral(4)
    assert report["parameters"] == layout.size
    assert report["lora_parameters"] == layout.lora_size(8)
    # npy headers come on top of the numbers.
    assert 4 * layout.lora_size(8) < report["flower_bytes_per_client"] < 4.05 * layout.lora_size(8)
    found = [(line["aggregation"], line["clients"]) for line in report["growth"]]
    assert found == [
        ("factorwise", 3),
        ("factorwise", 100),
        ("factorwise", 150),
        ("factorwise", 200),
        ("merged", 3),
    ]


def test_figures_agree_with_each_other(report: dict[str, Any]) -> None:
    # Times of separate measurements are not compared: noise may make a part longer than the whole.
    for found in report["codecs"]:
        for name in ("header", "check", "add", "whole", "clients_per_second"):
            spread = found[name]
            assert 0 < spread["lower"] <= spread["median"] <= spread["upper"]
    for line in report["growth"]:
        assert line["check_seconds"] + line["add_seconds"] < line["seconds"]
        assert line["clients_per_second"] == pytest.approx(line["clients"] / line["seconds"])


def test_memory_holds_the_mean_and_does_not_grow(report: dict[str, Any]) -> None:
    ours = [line for line in report["growth"] if line["aggregation"] == "factorwise"]
    memory = {line["clients"]: line["memory"] for line in ours}
    # The sums; compiled, there is no vector.
    assert memory[100] > 12 * report["parameters"]
    assert memory[200] < 1.25 * memory[100]
    for line in report["growth"]:
        assert line["process_memory"] > line["memory"]


def test_the_first_process_on_a_machine_compiles(report: dict[str, Any]) -> None:
    use = report["first_use"]
    assert use["first_seconds"] > use["later_seconds"] > 0
    assert use["later_memory"] > 0


def test_goals_follow_from_the_figures(report: dict[str, Any]) -> None:
    int4 = report["codecs"][0]
    passes, flower, memory, time = report["goals"]
    assert passes["figure"] == int4["passes"]["median"]
    assert flower["figure"] == int4["flower"]["median"]
    assert passes["holds"] == (passes["figure"] <= 5)
    assert flower["holds"] == (flower["figure"] >= 10)
    for spread in (memory, time):
        assert spread["holds"] == (spread["figure"] <= 1.25)
