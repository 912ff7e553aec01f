"""The base: a pretrained transformer, frozen everywhere, and the small task head on top of it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from fedkron.demo import resolve_base
from fedkron.errors import ConfigError

FEATURE_NORM = 10.0
"""Length of the feature vector that the head sees: lets a head with zero weights learn in few steps."""

# A base is data: code that lies beside it never runs (unless told, transformers would ask the terminal), and
# weights that are pickles, which are programs too, are not read.
_NO_CODE: dict[str, Any] = {"trust_remote_code": False}


@dataclass(frozen=True)
class Base:
    """A loaded base: `backbone` gives hidden states, `name` is the id or path it came from.

    A base for texts has a `tokenizer`, one for images an `image_processor`; the other is None.
    """

    name: str
    backbone: nn.Module
    tokenizer: Any
    fingerprint: str
    image_processor: Any = None

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states."""
        return _hidden_size(self.backbone)


def load_base(name: str) -> Base:
    """Load backbone, tokenizer and fingerprint of a `transformers` model (float32, CPU, eval mode).

    `name` is a Hub id, a folder, or `demo:all-minilm-l6-v2`. Raises `ConfigError` when there is no such
    model, or it cannot be reached or read, and `TaskError` when the demo cannot be prepared.
    """
    backbone, tokenizer = _load_text_model(name, AutoModel)
    backbone = _without_pooler(backbone).eval()
    return Base(name, backbone, tokenizer, fingerprint(backbone))


def load_image_base(name: str) -> Base:
    """Load backbone, image processor and fingerprint of a ViT-like model (float32, CPU, eval mode).

    The processor resizes with Pillow, as a bundle does on a device. Raises like `load_base`, and
    `ConfigError` for a model that does not turn an image into a row of tokens.
    """
    from transformers import AutoImageProcessor

    source = resolve_base(name)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        backbone = AutoModel.from_pretrained(source, dtype=torch.float32, use_safetensors=True, **_NO_CODE)
        processor = AutoImageProcessor.from_pretrained(source, backend="pil", **_NO_CODE)  # type: ignore[no-untyped-call]
    except (OSError, ValueError, SafetensorError) as error:
        raise _no_such_base(name, error) from error
    known = all(hasattr(backbone.config, name) for name in ("hidden_size", "image_size"))
    if not known or backbone.main_input_name != "pixel_values":
        raise ConfigError(
            f"base {name!r} ({type(backbone).__name__}) does not turn an image into a row of tokens: "
            "give a vision transformer like ViT, DeiT, BEiT, DINOv2 or Swin"
        )
    backbone = _without_pooler(backbone).eval()
    return Base(name, backbone, None, fingerprint(backbone), processor)


def load_language_model(name: str) -> Base:
    """Load a causal language model with its head, tokenizer and fingerprint (float32, CPU, eval mode).

    Its layers have other paths than in `load_base` (`model.layers.0…`, `lm_head`), and its fingerprint is
    that of the whole model: adapters are for one of the two. Raises like `load_base`.
    """
    model, tokenizer = _load_text_model(name, AutoModelForCausalLM)
    return Base(name, model.eval(), tokenizer, fingerprint(model))


def load_any_base(name: str) -> Base:
    """Load a base for texts or for images, whichever it is. Raises like `load_base` and `load_image_base`."""
    try:
        config = AutoConfig.from_pretrained(resolve_base(name), **_NO_CODE)
    except (OSError, ValueError) as error:
        raise _no_such_base(name, error) from error
    return load_image_base(name) if hasattr(config, "image_size") else load_base(name)


def empty_backbone(name: str) -> nn.Module:
    """The backbone on the meta device, from its configuration alone: shapes, but no weights.

    Raises like `load_base`.
    """
    source = resolve_base(name)
    try:
        config = AutoConfig.from_pretrained(source, **_NO_CODE)
    except (OSError, ValueError) as error:
        raise _no_such_base(name, error) from error
    with torch.device("meta"):
        return _without_pooler(AutoModel.from_config(config, **_NO_CODE))  # type: ignore[no-untyped-call]


def fingerprint(backbone: nn.Module) -> str:
    """SHA-256 (hex) over names, dtypes, shapes and bytes of all weights, sorted by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(backbone.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        # Reinterpreted as bytes: numpy has no bfloat16.
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def mean_pool(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """Mean of the hidden states (batch, sequence, hidden) over the real tokens: (batch, hidden).

    In float32, if they have fewer bits.
    """
    hidden = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)


def text_features(backbone: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Mean-pooled hidden states, scaled to length `FEATURE_NORM`: (batch, hidden)."""
    hidden = backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
    return FEATURE_NORM * nn.functional.normalize(mean_pool(hidden, attention_mask), dim=-1)


def image_features(backbone: nn.Module, pixel_values: Tensor) -> Tensor:
    """Mean of the hidden states of all tokens, scaled to length `FEATURE_NORM`: (batch, hidden).

    `pixel_values` is float32 (batch, channels, height, width).
    """
    hidden = backbone(pixel_values=pixel_values).last_hidden_state
    return FEATURE_NORM * nn.functional.normalize(hidden.mean(1), dim=-1)


class TaskModel(nn.Module):
    """A backbone with a linear head that starts at zero.

    The head has one output per label (classification), or a single one, the score of a choice
    (multiple choice).
    """

    def __init__(self, backbone: nn.Module, outputs: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(_hidden_size(backbone), outputs)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits (batch, outputs) for token ids and mask, both (batch, sequence)."""
        logits: Tensor = self.head(text_features(self.backbone, input_ids, attention_mask))
        return logits


def _load_text_model(name: str, model_class: Any) -> tuple[nn.Module, Any]:  # noqa: ANN401
    """Model of one of transformers' auto classes, and a tokenizer that can pad."""
    source = resolve_base(name)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model = model_class.from_pretrained(source, dtype=torch.float32, use_safetensors=True, **_NO_CODE)
        tokenizer = AutoTokenizer.from_pretrained(source, **_NO_CODE)
    except (OSError, ValueError, SafetensorError) as error:
        raise _no_such_base(name, error) from error
    if tokenizer.pad_token is None:
        # Decoders often have none. What is padded is masked, so any token will do.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return model, tokenizer


def _without_pooler(backbone: nn.Module) -> nn.Module:
    # BERT-like poolers feed a head that we do not use: an adapter on them would travel but never learn.
    if getattr(backbone, "pooler", None) is not None:
        backbone.register_module("pooler", None)
    return backbone


def _hidden_size(backbone: Any) -> int:  # noqa: ANN401
    return int(backbone.config.hidden_size)


def _no_such_base(name: str, error: Exception) -> ConfigError:
    found = "the folder exists" if Path(name).is_dir() else "no such folder here"
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ConfigError(
        f"base {name!r} cannot be loaded ({found}; {first_line}): give a Hub id that can be reached, "
        "a folder saved by save_pretrained (safetensors, no code of its own), or demo:all-minilm-l6-v2"
    )
