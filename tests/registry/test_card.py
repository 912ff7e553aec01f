"""Model cards, licences, and what a publisher is asked to correct."""

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder
from huggingface_hub import ModelCard
from registry_cases import KEY, adapter, head, prepared, written

from fedkron.errors import ContractError, ExchangeError
from fedkron.exchange import save_adapter, save_head
from fedkron.registry.card import HUB_LICENSES, hub_id, model_card
from fedkron.registry.material import Choice, material
from fedkron.registry.publication import Metric, Privacy, Traffic, Training
from fedkron.registry.publish import spdx

ROOT = Path(__file__).parents[2]


def test_names_are_shown_as_they_are_and_are_no_markup(tmp_path: Path) -> None:
    bad = "<script>|[x](javascript:y)`\"'{{ 7 * 7 }}: - #"
    draft = prepared(tmp_path).draft
    metric = Metric(bad, "accuracy", 0.75)
    told = replace(draft, tasks=(bad,), metrics=(metric,), base=replace(draft.base, name=bad, license=bad))
    card = ModelCard(model_card(told))
    assert card.data.base_model is None
    assert card.data.eval_results is not None
    assert [(r.dataset_name, r.metric_value) for r in card.data.eval_results] == [(bad, 0.75)]
    assert "<script>" not in card.text
    assert "49" not in card.text.split("## Integrity")[0]
    rows = [line for line in card.text.splitlines() if "script" in line and line.startswith("| ")]
    assert len(rows) == 1
    assert rows[0].replace("\\|", "").count("|") == 5


def test_figures_are_on_the_card(tmp_path: Path) -> None:
    draft = prepared(tmp_path).draft
    assert "nothing is known but what the file says" in model_card(draft)
    assert "1 head of tasks is published with it" in " ".join(model_card(draft).split())
    told = replace(
        draft,
        training=Training("run-1", 7, 5, "factorwise", "ecsq", "int4", secure_aggregation=True),
        traffic=Traffic(100, 300, 4000),
        privacy=Privacy("central", 2.345678, 1e-5, 7),
        license="LicenseRef-Clinic Terms",
    )
    card = ModelCard(model_card(told))
    for text in ("rounds | 7", "ecsq / int4", "sums only", "10.0 times fewer", "ε = 2.35 at δ = 1e-05"):
        assert text in card.text
    assert (card.data.license, card.data["license_name"]) == ("other", "licenseref-clinic-terms")


def test_licences_are_of_spdx() -> None:
    assert spdx("apache-2.0") == "Apache-2.0"
    assert spdx("mit or apache-2.0") == "MIT OR Apache-2.0"
    assert spdx("LicenseRef-mine") == "LicenseRef-mine"
    for wrong in ("", "free", "Apache 2"):
        with pytest.raises(ExchangeError, match="not an SPDX expression"):
            spdx(wrong)
    for known in HUB_LICENSES.split():
        assert spdx(known).lower() == known


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ("org/tiny", "org/tiny"),
        ("gpt2", "gpt2"),
        ("demo:all-minilm-l6-v2", "sentence-transformers/all-MiniLM-L6-v2"),
        ("a b", None),
        ("x/y/z", None),
    ],
)
def test_a_base_is_linked_where_the_hub_may_know_it(base: str, expected: str | None) -> None:
    assert hub_id(base) == expected


def test_what_cannot_be_published_as_it_is(tmp_path: Path) -> None:
    file, head_file = written(tmp_path)
    for name in (str(tmp_path), "./base", "~/base"):
        save_adapter(file, adapter(base_name=name))
        with pytest.raises(ExchangeError, match="path of this machine"):
            material(file, Choice())
        found = material(file, Choice(base_name="org/tiny"))
        assert found.adapter.base_name == "org/tiny"
        assert all(name.encode() not in item.data for item in found.contents)
    save_adapter(file, replace(adapter(), info={"terms": "0" * 64}))
    with pytest.raises(ExchangeError, match="needs terms"):
        material(file, Choice())
    save_adapter(file, adapter())
    save_head(head_file, replace(head(), contract="0" * 64))
    with pytest.raises(ContractError, match="head of task 'film'"):
        material(file, Choice(heads=[head_file]))


def test_the_wheel_has_the_card_s_text(tmp_path: Path) -> None:
    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(wheel) as archive:
        assert "fedkron/registry/card.md.jinja" in archive.namelist()


def test_what_is_signed_is_what_was_prepared(tmp_path: Path) -> None:
    ready = prepared(tmp_path)
    content = json.loads(ready.signed(5, KEY).content)
    assert content["release"] == 5
    assert {f["path"] for f in content["files"]} == {item.file.path for item in ready.contents}
