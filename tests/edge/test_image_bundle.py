"""A base of images, from `fedkron export` to an answer, against torch."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from edge_cases import HIDDEN, SPECS, random_head, with_adapter
from PIL import Image
from transformers import AutoModel, ViTConfig
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from fedkron.base import image_features, load_any_base
from fedkron.cli import main
from fedkron.edge.runtime import Bundle
from fedkron.errors import TaskError
from fedkron.exchange import save_adapter, save_head

LABELS = ("benign", "malign", "unclear")


def test_an_adapter_of_images_is_exported_and_answers_as_torch_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    size = {"hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    AutoModel.from_config(ViTConfig(**size, image_size=24, patch_size=4)).save_pretrained(tmp_path / "base")
    processor = ViTImageProcessorPil(size={"height": 24, "width": 24})
    processor.save_pretrained(tmp_path / "base")
    base = load_any_base(str(tmp_path / "base"))
    model, adapter = with_adapter(base.backbone, SPECS["kron_lora"], base.fingerprint, seed=1)
    save_adapter(tmp_path / "adapter.safetensors", replace(adapter, base_name=str(tmp_path / "base")))
    head = random_head("lesions", LABELS, adapter.layout.contract)
    save_head(tmp_path / "head.safetensors", head)
    command = ["export", str(tmp_path / "adapter.safetensors"), "--head", str(tmp_path / "head.safetensors")]
    assert main([*command, "-o", str(tmp_path / "bundle"), "--json"]) == 0
    agreements = json.loads(capsys.readouterr().out)["agreement"]
    assert [a["form"] for a in agreements] == ["merged", "unmerged"]
    assert all(a["difference"] <= 1e-4 * a["magnitude"] and a["same_answers"] == 1 for a in agreements)

    rng = np.random.default_rng(3)
    arrays = [rng.integers(0, 256, (30 + 5 * i, 40, 3), np.uint8) for i in range(3)]
    opened = Bundle.open(tmp_path / "bundle", threads=1)
    with torch.no_grad():
        features = image_features(model, processor(arrays, return_tensors="pt")["pixel_values"]).numpy()
    expected = features @ head.weight.T + head.bias
    for images in arrays, [Image.fromarray(array) for array in arrays]:
        np.testing.assert_allclose(opened.logits(images, "lesions"), expected, atol=1e-4)
    assert [p.label for p in opened.predict(arrays, "lesions")] == [LABELS[i] for i in expected.argmax(-1)]
    assert not (tmp_path / "bundle" / "tokenizer.json").exists()
    with pytest.raises(TaskError, match="has no tokenizer"):
        opened.tokenize(["who"])
