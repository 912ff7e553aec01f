"""What is in a PEFT checkpoint: a LoRA or LoKr adapter, read as layers of ours.

The format is PEFT's own (huggingface.co/docs/peft, "PEFT checkpoint format"): `adapter_config.json` beside
`adapter_model.safetensors`. The `peft` package is not needed to read it; torch is, for bfloat16.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from fedkron.errors import AdapterError
from fedkron.layout import ModuleLayout, State, TensorLayout

PEFT_CONFIG = "adapter_config.json"
PEFT_WEIGHTS = "adapter_model.safetensors"
PEFT_PICKLE = "adapter_model.bin"
PEFT_ROOT = "base_model.model."
"""What PEFT puts before every path."""

_FACTORS = {
    "LORA": re.compile(r"(.+)\.(lora_[AB])\.weight"),
    "LOKR": re.compile(r"(.+)\.(lokr_w[12](?:_[ab])?)"),
}
# These change what the factors mean, and not all of them bring a tensor that gives them away.
_VARIANTS = (
    *("use_dora", "lora_bias", "layer_replication", "target_parameters", "use_qalora"),
    *("alora_invocation_tokens", "arrow_config", "use_bdlora", "kasa_config", "monteclora_config"),
    "trainable_token_indices",
)
# Other initialisations (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA, …) change the base's weights, too.
_PLAIN_INITS = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class PeftCheckpoint:
    """An adapter as PEFT keeps it, with paths of the model that PEFT had wrapped.

    `modules` are its layers with factors of ours in `state`, exactly the same ΔW: a LoRA is of kind `lora`;
    a LoKr of kind `kron_lora`, or `krona` where its second factor is full. `others` are the names of further
    tensors (`modules_to_save`), which are not read.
    """

    peft_type: str
    base_name: str
    modules: tuple[ModuleLayout, ...]
    state: State
    others: tuple[str, ...]


def is_peft_checkpoint(folder: Path) -> bool:
    """Whether a folder has PEFT's configuration file."""
    return (folder / PEFT_CONFIG).is_file()


def read_peft(folder: Path) -> PeftCheckpoint:
    """Read a PEFT checkpoint; factors become float32.

    Raises `AdapterError` when it is missing or damaged, or when it has what no adapter kind of ours can
    represent: the message names it.
    """
    if (folder / PEFT_PICKLE).exists() and not (folder / PEFT_WEIGHTS).exists():
        raise AdapterError(
            f"{folder / PEFT_PICKLE} is a pickle, which can run any code when it is read: load it where you "
            "trust it and save it with PEFT again, as safetensors"
        )
    for name in (PEFT_CONFIG, PEFT_WEIGHTS):
        if not (folder / name).is_file():
            raise AdapterError(f"{folder} is not a PEFT checkpoint with safetensors: {name} is missing")
    try:
        config = json.loads((folder / PEFT_CONFIG).read_text(encoding="utf-8"))
        _check_config(config)
        return _checkpoint(config, *_tensors(folder / PEFT_WEIGHTS, _FACTORS[config["peft_type"]]))
    except AdapterError as error:
        raise AdapterError(f"{folder}: {error}") from error
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{folder / PEFT_WEIGHTS} cannot be read: {error}") from error
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, re.error) as error:
        raise AdapterError(f"{folder}: the PEFT checkpoint is damaged: {error!r}") from error


def _check_config(config: Mapping[str, Any]) -> None:
    if (peft_type := config.get("peft_type")) not in _FACTORS:
        raise AdapterError(f"PEFT type {peft_type!r} cannot be imported: only {' and '.join(_FACTORS)} can")
    if variants := [name for name in _VARIANTS if config.get(name)]:
        raise AdapterError(
            f"{', '.join(variants)} in {PEFT_CONFIG}: no adapter kind of ours can represent that"
        )
    if (bias := config.get("bias", "none")) != "none":
        raise AdapterError(
            f"bias is {bias!r}: an adapter of ours changes no biases, only 'none' can be imported"
        )
    initial = config.get("init_lora_weights", True)
    if initial not in _PLAIN_INITS and peft_type == "LORA":
        raise AdapterError(
            f"init_lora_weights is {initial!r}, which may have changed the base's weights: convert the "
            "checkpoint to a plain LoRA with PEFT first (save_pretrained with "
            "path_initial_model_for_weight_conversion)"
        )


def _tensors(path: Path, factor: re.Pattern[str]) -> tuple[dict[str, State], tuple[str, ...]]:
    """Factors by layer path and PEFT's name, and the names of the other tensors (without PEFT's root)."""
    layers: dict[str, State] = defaultdict(dict)
    others: list[str] = []
    with safe_open(path, framework="pt") as file:
        for key in sorted(file.keys()):
            if not key.startswith(PEFT_ROOT):
                raise AdapterError(f"tensor {key!r} does not begin with {PEFT_ROOT!r}, as PEFT's do")
            name = key.removeprefix(PEFT_ROOT)
            if found := factor.fullmatch(name):
                layers[found[1]][found[2]] = _factor(name, file.get_tensor(key).float().numpy())
            elif "lora_" in name or "lokr_" in name:
                raise AdapterError(f"tensor {name!r}: no adapter kind of ours can represent that")
            else:
                others.append(name)
    return layers, tuple(others)


def _factor(name: str, tensor: np.ndarray) -> np.ndarray:
    if tensor.ndim != 2:
        raise AdapterError(
            f"tensor {name!r} has shape {list(tensor.shape)}: only linear layers can be imported"
        )
    if not np.isfinite(tensor).all():
        raise AdapterError(f"tensor {name!r} holds values that are not finite")
    return tensor


def _checkpoint(
    config: Mapping[str, Any], layers: dict[str, State], others: tuple[str, ...]
) -> PeftCheckpoint:
    peft_type = config["peft_type"]
    if not layers:
        raise AdapterError(f"there is no {peft_type} layer in {PEFT_WEIGHTS}")
    modules: list[ModuleLayout] = []
    state: State = {}
    for path, tensors in layers.items():
        try:
            kind, factors = _lora(tensors) if peft_type == "LORA" else _lokr(tensors)
        except KeyError as missing:
            raise AdapterError(f"layer {path!r}: tensor {missing} is missing") from None
        if kind == "lora" and len(factors["lora_A"]) != (rank := _rank(path, config)):
            raise AdapterError(
                f"layer {path!r} has rank {len(factors['lora_A'])}, {PEFT_CONFIG} says {rank}: its scale is "
                "unknown"
            )
        modules.append(
            ModuleLayout(
                path,
                kind,
                _scale(path, config),
                _weight_shape(kind, factors),
                tuple(TensorLayout(name, tuple(factor.shape)) for name, factor in factors.items()),
            )
        )
        state |= {modules[-1].tensor_name(name): factor for name, factor in factors.items()}
    return PeftCheckpoint(
        peft_type, str(config.get("base_model_name_or_path") or ""), tuple(modules), state, others
    )


def _lora(tensors: State) -> tuple[str, State]:
    return "lora", {"lora_A": tensors["lora_A"], "lora_B": tensors["lora_B"]}


def _lokr(tensors: State) -> tuple[str, State]:
    """ΔW = scale · w1 ⊗ w2, either of them given in full or as a product."""
    A = tensors.get("lokr_w1")
    if A is None:
        wide = tensors["lokr_w1_a"].astype(np.float64) @ tensors["lokr_w1_b"]
        A = wide.astype(np.float32)
    if "lokr_w2" in tensors:
        return "krona", {"A": A, "B": tensors["lokr_w2"]}
    return "kron_lora", {"A": A, "B1": tensors["lokr_w2_a"], "B2": tensors["lokr_w2_b"]}


def _weight_shape(kind: str, factors: State) -> tuple[int, int]:
    match kind:
        case "lora":
            return factors["lora_B"].shape[0], factors["lora_A"].shape[1]
        case "krona":
            tall = wide = factors["B"]
        case _:
            tall, wide = factors["B1"], factors["B2"]
    d_a2, d_a1 = factors["A"].shape
    return d_a2 * tall.shape[0], d_a1 * wide.shape[1]


def _scale(path: str, config: Mapping[str, Any]) -> float:
    """α/r, or α/√r for a rank-stabilised LoRA, of one layer."""
    alpha_name = "lora_alpha" if config["peft_type"] == "LORA" else "alpha"
    r = _rank(path, config)
    alpha = _of_layer(path, config.get("alpha_pattern") or {}, config[alpha_name])
    return alpha / (math.sqrt(r) if config.get("use_rslora") else r)


def _rank(path: str, config: Mapping[str, Any]) -> float:
    return _of_layer(path, config.get("rank_pattern") or {}, config["r"])


def _of_layer(path: str, pattern: Mapping[str, float], default: float) -> float:
    """The value of PEFT's first pattern (a regular expression for the end of a path) that matches."""
    return next((value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", path)), default)
