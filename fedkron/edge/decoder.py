"""A causal language model with its key-value cache as one graph: for the prompt and for every later token."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from fedkron.edge.exporter import export_module
from fedkron.edge.language_model import LanguageModelInput
from fedkron.errors import BundleError, ConfigError

if TYPE_CHECKING:  # fedkron.edge.exporter says what to install where onnx is missing
    from onnx import ModelProto

LOGITS = "logits"

_FULL, _SLIDING = "full_attention", "sliding_attention"

_TOLERANCE = 1e-3
"""Of logits, relative to the largest: a wrong mask or position is far beyond it, rounding far below."""


def export_decoder(model: PreTrainedModel) -> ModelProto:
    """Export a causal language model (float32, no adapter attached) with its weights in the model.

    Inputs: `input_ids` int64 (batch, sequence), the new tokens; `attention_mask` int64 (batch, past +
    sequence), 0 for padding, which is on the left; `past_key_values.N.key` and `.value` float32 (batch,
    kv_heads, past, head_size) for each layer N. Outputs: `logits` float32 (batch, vocabulary), of the last
    token of each row, which is all that generation needs; `present.N.key` and `.value`, the past with the
    new tokens. batch, sequence and past are dynamic, and past may be 0.

    Layers with a sliding window have it in their mask, and keep the whole past. Nodes of linear layers
    carry their paths in `model`, as `export_module` says. Puts `model` into eval mode.

    Raises `BundleError` for a model that cannot be run like this: whose cache is not a key and a value per
    layer, whose positions depend on the length of the text, or whose left-padded batch, fed in two parts,
    does not give the logits that the model gives for each text alone.
    """
    decoder = _Decoder(model).eval()
    _check_kind(model)
    layers, heads, head_size = _cache_shape(model)
    _check_two_parts(decoder, layers, heads, head_size)

    names = LanguageModelInput(0, 0, (), layers, heads, head_size)
    past = [torch.zeros(2, heads, 5, head_size) for _ in names.past_names]
    tokens = torch.ones(2, 3, dtype=torch.int64)
    axes: list[Any] = [{0: "batch", 1: "sequence"}, {0: "batch", 1: "past + sequence"}]
    return export_module(
        decoder,
        (tokens, torch.ones(2, 8, dtype=torch.int64), *past),
        inputs=names.names,
        outputs=(LOGITS, *names.present_names),
        dynamic_shapes=(*axes, ({0: "batch", 2: "past"},) * len(past)),
        backbone=model,
        prefix="model",
    )


def language_model_input(model: PreTrainedModel, tokenizer: Any, max_length: int) -> LanguageModelInput:  # noqa: ANN401
    """What the manifest says about this model, with its `transformers` tokenizer.

    Raises `ConfigError` when the model cannot take `max_length` tokens, `BundleError` like `export_decoder`.
    """
    limits = (tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None))
    limit = min((int(limit) for limit in limits if limit), default=max_length)
    if not 2 <= max_length <= limit:
        raise ConfigError(f"max_length is {max_length}: this model takes 2 to {limit} tokens")
    ends = getattr(model.generation_config, "eos_token_id", None)
    candidates = [*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id]
    eos_ids = sorted({int(token) for token in candidates if token is not None})
    # What is padded is masked, so any token will do.
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (*eos_ids, 0)[0]
    return LanguageModelInput(max_length, int(pad_id), tuple(eos_ids), *_cache_shape(model))


class _Decoder(nn.Module):
    """The model with its cache as plain tensors, and with masks and positions of our making."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        cache: Any = DynamicCache(zip(past[::2], past[1::2], strict=True))
        sequence = input_ids.shape[1]
        # A text's first token is at position 0, wherever in its row it stands.
        positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        result = self.model(
            input_ids=input_ids,
            attention_mask=_masks(self.model.config, attention_mask, sequence),
            position_ids=positions[:, -sequence:],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        present = chain.from_iterable((layer.keys, layer.values) for layer in cache.layers)
        return result.logits[:, -1], *present


def _masks(config: Any, attention_mask: Tensor, sequence: int) -> Tensor | dict[str, Tensor]:  # noqa: ANN401
    """What is added to the scores of the last `sequence` tokens, (batch, 1, sequence, past + sequence).

    Models whose layers are of two kinds take one mask for each, as `transformers` would make them.
    """
    total = attention_mask.shape[1]
    keys, queries = torch.arange(total), torch.arange(total - sequence, total)[:, None]
    seen = (keys <= queries) & attention_mask.bool()[:, None, None]
    kinds = _attention_kinds(config)
    masks = {_FULL: seen}
    if _SLIDING in kinds:
        masks[_SLIDING] = seen & (keys > queries - config.sliding_window)
    lowest = torch.finfo(torch.float32).min
    added = {kind: torch.where(masks[kind], 0.0, lowest) for kind in kinds}
    return added if len(added) > 1 else next(iter(added.values()))


def _attention_kinds(config: Any) -> list[str]:  # noqa: ANN401
    if types := getattr(config, "layer_types", None):
        return sorted(set(types))
    return [_FULL if getattr(config, "sliding_window", None) is None else _SLIDING]


def _check_kind(model: PreTrainedModel) -> None:
    config, name = model.config, type(model).__name__
    if model.dtype != torch.float32:
        raise BundleError(f"this {name} is {model.dtype}: load it with dtype=torch.float32")
    if others := set(_attention_kinds(config)) - {_FULL, _SLIDING}:
        raise BundleError(
            f"{name} has layers of {others.pop()}: only full and sliding attention run in a graph"
        )
    rope = str(getattr(config, "rope_parameters", None))
    if "'dynamic'" in rope or "'longrope'" in rope:
        raise BundleError(f"{name} has positions that depend on the length of the text: no graph has that")


@torch.no_grad()
def _cache_shape(model: PreTrainedModel) -> tuple[int, int, int]:
    """Layers, key-value heads and head size, as the model fills its cache."""
    cache = model(torch.zeros(1, 1, dtype=torch.int64), use_cache=True).past_key_values
    layers = getattr(cache, "layers", [])
    shapes = {
        getattr(getattr(layer, part, None), "shape", ()) for layer in layers for part in ("keys", "values")
    }
    match list(shapes):
        case [(1, heads, 1, head_size)]:
            return len(layers), heads, head_size
    raise BundleError(
        f"the cache of {type(model).__name__} is no key and value of one size per layer (sizes "
        f"{', '.join(str(list(shape)) for shape in shapes) or 'unknown'}): it does not run in a graph"
    )


@torch.no_grad()
def _check_two_parts(decoder: _Decoder, layers: int, heads: int, head_size: int) -> None:
    model, padding = decoder.model, 2
    ids = torch.arange(12).view(2, 6) % model.config.vocab_size
    mask = torch.ones_like(ids)
    mask[1, :padding] = 0
    alone = [model(row[None]).logits[0, -1] for row in (ids[0], ids[1, padding:])]
    past = [torch.zeros(2, heads, 0, head_size)] * (2 * layers)
    try:
        _, *past = decoder(ids[:, :4], mask[:, :4], *past)
        logits, *_ = decoder(ids[:, 4:], mask, *past)
    except (TypeError, ValueError, RuntimeError, LookupError, AttributeError) as error:
        raise BundleError(
            f"{type(model).__name__} does not take a mask, positions and a cache as LLaMA does ({error}): "
            "it does not run in a graph"
        ) from error
    expected = torch.stack(alone)
    difference = float((logits - expected).abs().max() / expected.abs().max())
    if not difference <= _TOLERANCE:
        raise BundleError(
            f"{type(model).__name__} gives other logits for a padded batch in two parts than for each text "
            f"alone (by {difference:.1e} of the largest): it does not run in a graph"
        )
