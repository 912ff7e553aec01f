"""Bases and checkpoints from elsewhere are data: nothing in them is run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from federation_cases import save_tiny_bert
from transformers import AutoModel

from fedkron.base import empty_backbone, load_any_base, load_base, load_image_base, load_language_model
from fedkron.errors import AdapterError, ConfigError
from fedkron.exchange import read_peft

LOADERS = [load_base, load_any_base, load_language_model, load_image_base]


class Program:
    """What a pickle can be: unpickled, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("load", LOADERS)
def test_weights_that_are_pickles_are_not_read(load: object, tmp_path: Path) -> None:
    base = save_tiny_bert(tmp_path / "base")
    state = AutoModel.from_pretrained(base).state_dict()
    (base / "model.safetensors").unlink()
    for content in (state, {"weight": Program(tmp_path / "made")}):
        torch.save(content, base / "pytorch_model.bin")
        with pytest.raises(ConfigError, match=r"cannot be loaded.*safetensors"):
            load(str(base))  # type: ignore[operator]
    assert not (tmp_path / "made").exists()
    torch.load(base / "pytorch_model.bin", weights_only=False)
    assert (tmp_path / "made").exists()  # it would have worked


@pytest.mark.parametrize("loader", ["load_base", "empty_backbone"])
def test_code_beside_a_base_is_not_run_whatever_the_terminal_says(loader: str, tmp_path: Path) -> None:
    base = save_tiny_bert(tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    classes = ("AutoConfig", "AutoModel", "AutoModelForCausalLM")
    config |= {"model_type": "mine", "auto_map": {name: f"code.{name}" for name in classes}}
    (base / "config.json").write_text(json.dumps(config))
    (base / "code.py").write_text(f"import os; os.mkdir({str(tmp_path / 'made')!r})\n")
    program = f"import fedkron.base; fedkron.base.{loader}({str(base)!r})"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, input="y\ny\n", capture_output=True, text=True, check=False, timeout=60)
    assert "ConfigError" in done.stderr
    assert "run the custom code?" not in done.stdout
    assert not (tmp_path / "made").exists()


def test_a_tokenizer_brings_no_code_either(tmp_path: Path) -> None:
    base = save_tiny_bert(tmp_path / "base")
    file = base / "tokenizer_config.json"
    config = json.loads(file.read_text()) | {
        "tokenizer_class": "Mine",
        "auto_map": {"AutoTokenizer": ["code.Mine", None]},
    }
    file.write_text(json.dumps(config))
    (base / "code.py").write_text(f"import os; os.mkdir({str(tmp_path / 'made')!r})\n")
    assert load_base(str(base)).tokenizer("red")["input_ids"]  # by the class that transformers has
    assert not (tmp_path / "made").exists()


def test_a_backbone_from_its_configuration_needs_no_weights(tmp_path: Path) -> None:
    base = save_tiny_bert(tmp_path / "base")
    (base / "model.safetensors").unlink()
    assert next(empty_backbone(str(base)).parameters()).is_meta


def test_a_peft_checkpoint_that_is_a_pickle_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    torch.save({"weight": Program(tmp_path / "made")}, tmp_path / "adapter_model.bin")
    with pytest.raises(AdapterError, match=r"adapter_model\.bin is a pickle"):
        read_peft(tmp_path)
    assert not (tmp_path / "made").exists()
