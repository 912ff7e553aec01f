"""The paper's parameter counts, and the full-size configurations, without weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel

from fedkron.adapters import AdapterSpec, adapter_layout, attach
from fedkron.errors import ConfigError, RunError
from simulations.paper import configurations, counts
from simulations.paper.configurations import FOLDER, check
from simulations.paper.models import DISTILBERT, MISTRAL


def test_all_counts_are_the_papers_and_a_wrong_one_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert counts.main(["--json", str(tmp_path / "counts.json")]) == 0
    written = json.loads((tmp_path / "counts.json").read_text())
    found = {(row["model"], row["adapter"]): row["ours"] for row in written}
    assert found["DistilBERT", "Kron-LoRA"] == 840_481
    assert found["DistilBERT", "LoRA-16"] == 1_918_465
    assert found["Mistral-7B", "Kron-LoRA"] == 5_708_448
    assert len(found) == 6
    assert all(row["equal"] for row in written)

    wrong = replace(counts.CLAIMS[1], parameters=923_138)
    monkeypatch.setattr(counts, "CLAIMS", (wrong,))
    capsys.readouterr()
    assert counts.main([]) == 1
    printed = capsys.readouterr().out
    assert all(text in printed for text in ("923,138", "923,137", "NO"))


def test_configurations_are_complete(tmp_path: Path) -> None:
    assert configurations.main(["--json", str(tmp_path / "checked.json")]) == 0
    distilbert, mistral = json.loads((tmp_path / "checked.json").read_text())
    assert (distilbert["parameters"], mistral["parameters"]) == (249_120, 5_676_032)
    # A plain Flower app sends LoRA-8 three times a round.
    assert (distilbert["lora_bytes"], mistral["lora_bytes"]) == (12 * 663_552, 12 * 20_971_520)
    # 2 bits a parameter, up and down, and not much beside.
    for one in (distilbert, mistral):
        assert one["parameters"] / 2 * 0.95 < one["bytes"] < one["parameters"] / 2 * 1.1
    assert mistral["weights"] / 2 == pytest.approx(7.11e9, rel=0.01)  # bfloat16


def test_the_adapter_of_a_configuration_is_that_of_its_settings(tmp_path: Path) -> None:
    text = (FOLDER / "distilbert.toml").read_text()
    file = tmp_path / "changed.toml"
    file.write_text(text.replace("d-a2 = 4", "d-a2 = 8"))
    found = check(file, DISTILBERT)
    with torch.device("meta"):
        backbone = AutoModel.from_config(AutoConfig.for_model("distilbert"))
    assert found.parameters == adapter_layout(attach(backbone, AdapterSpec(d_a2=8)), base="").size
    assert not found.equal

    with pytest.raises(RunError, match="must be 'mistralai"):
        check(FOLDER / "distilbert.toml", MISTRAL)
    file.write_text(text.replace("winogrande_l?", "winogrande_xl?"))
    with pytest.raises(RunError, match="tasks are not those"):
        check(file, DISTILBERT)
    file.write_text(text.replace("d-a1", "d-a3"))
    with pytest.raises(ConfigError, match=r"adapter\.d-a3"):
        check(file, DISTILBERT)
