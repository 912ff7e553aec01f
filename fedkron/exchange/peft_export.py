"""Write an adapter as a PEFT LoRA checkpoint, exactly, for PEFT and everything that serves its adapters.

All layers get one rank and the scale one: smaller layers are filled up with zeros. PEFT could give each
its own (`rank_pattern`, `alpha_pattern`), but vLLM and llama.cpp read only `r` and `lora_alpha`, and would
scale such layers wrongly without a word.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from fedkron.atomic import replaced_folder
from fedkron.errors import AdapterError
from fedkron.exchange.conversion import lora_factors
from fedkron.exchange.files import AdapterFile
from fedkron.exchange.peft_checkpoint import PEFT_CONFIG, PEFT_ROOT, PEFT_WEIGHTS
from fedkron.layout import State


@dataclass(frozen=True, slots=True)
class PeftExport:
    """What was written: the rank of all layers, and the names of tensors that have no place in it."""

    rank: int
    left_out: tuple[str, ...]


def write_peft(
    folder: Path, adapter: AdapterFile, *, prefix: str = "", task_type: str | None = None
) -> PeftExport:
    """Write `adapter` as a PEFT LoRA checkpoint: same adapter, same bytes.

    `prefix` goes before every path, for a model that has the base inside of it (`model` for LLaMA's
    `AutoModelForCausalLM`, `bert` for BERT's `AutoModelForSequenceClassification`). `task_type` is PEFT's;
    None leaves the kind of model open. Tensors trained in full (a shared head) are left out.

    Raises `AdapterError`, writing nothing, when the adapter has no layers, or `folder` holds anything but
    a PEFT checkpoint, which is replaced.
    """
    _check_replaceable(folder)
    if not adapter.layout.modules:
        raise AdapterError("this adapter has no layers: there is nothing to export")
    start = f"{prefix}." if prefix else ""
    pairs = {f"{start}{m.path}": lora_factors(m, adapter.state) for m in adapter.layout.modules}
    rank = max(lora_A.shape[0] for _, lora_A in pairs.values())
    tensors: State = {}
    for path, (lora_B, lora_A) in pairs.items():
        missing = rank - lora_A.shape[0]
        tensors[f"{PEFT_ROOT}{path}.lora_A.weight"] = np.pad(lora_A, ((0, missing), (0, 0))).astype(
            np.float32
        )
        tensors[f"{PEFT_ROOT}{path}.lora_B.weight"] = np.pad(lora_B, ((0, 0), (0, missing))).astype(
            np.float32
        )
    config = {
        "base_model_name_or_path": adapter.base_name,
        "bias": "none",
        "fan_in_fan_out": False,  # PEFT finds out by itself where a weight is transposed (GPT-2)
        "inference_mode": True,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": sorted(pairs),
        "task_type": task_type,
    }
    _replace_folder(
        folder,
        {
            PEFT_CONFIG: (json.dumps(config, indent=2, sort_keys=True) + "\n").encode(),
            PEFT_WEIGHTS: save(tensors, {"format": "pt"}),
        },
    )
    return PeftExport(rank, tuple(tensor.name for tensor in adapter.layout.dense))


def _check_replaceable(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise AdapterError(f"{folder} is a file: give a folder for the PEFT checkpoint")
    held = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if held and (PEFT_CONFIG not in held or held - {PEFT_CONFIG, PEFT_WEIGHTS}):
        others = ", ".join(sorted(held - {PEFT_CONFIG, PEFT_WEIGHTS})) or PEFT_WEIGHTS
        raise AdapterError(f"{folder} is not a PEFT checkpoint only (it holds {others}): give another folder")


def _replace_folder(folder: Path, files: dict[str, bytes]) -> None:
    """Put a finished folder in the place of `folder`: nobody sees a part of it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with replaced_folder(folder) as fresh:
        for name, content in files.items():
            (fresh / name).write_bytes(content)
