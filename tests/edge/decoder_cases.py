"""Tiny language models with random weights, exported once, and a tokenizer of bytes."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import onnxruntime
import torch
from onnx import ModelProto
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from fedkron.edge.decoder import export_decoder, language_model_input
from fedkron.edge.generation import Generator
from fedkron.edge.language_model import LanguageModelInput

EOS, PAD, VOCABULARY, MAX_LENGTH = 256, 257, 260, 64
SIZE = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": MAX_LENGTH,
    # Large enough that a token depends on those before it.
    "initializer_range": 0.2,
    "bos_token_id": EOS,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
}
CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SIZE, num_hidden_layers=1, tie_word_embeddings=True),
    "mistral": MistralConfig(**SIZE, num_hidden_layers=1, sliding_window=5),
    "qwen2": Qwen2Config(**SIZE, num_hidden_layers=1),
    "qwen3": Qwen3Config(**SIZE, num_hidden_layers=1, head_dim=16),
    "gpt2": GPT2Config(
        n_embd=32,
        n_layer=1,
        n_head=4,
        n_positions=MAX_LENGTH,
        **{key: SIZE[key] for key in ("vocab_size", "initializer_range", "bos_token_id", "eos_token_id")},
        pad_token_id=PAD,
    ),
    "gemma3": Gemma3TextConfig(
        **SIZE,
        num_hidden_layers=2,
        head_dim=16,
        sliding_window=5,
        layer_types=["sliding_attention", "full_attention"],
    ),
}


@dataclass(frozen=True)
class ExportedDecoder:
    model: PreTrainedModel
    graph: ModelProto
    generator: Generator


@cache
def exported_decoder(family: str) -> ExportedDecoder:
    model = tiny_decoder(family)
    graph = export_decoder(model)
    return ExportedDecoder(model, graph, tiny_generator(graph, model))


def tiny_decoder(family: str) -> PreTrainedModel:
    torch.manual_seed(7)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(CONFIGS[family])
    return model.eval()


def tiny_generator(graph: ModelProto, model: PreTrainedModel, **changes: object) -> Generator:
    form = language_model_input(model, transformers_tokenizer(), MAX_LENGTH)
    if changes:
        form = LanguageModelInput.from_json(form.to_json() | changes)
    return Generator(open_graph(graph), byte_tokenizer(), form)


def open_graph(graph: ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(graph.SerializeToString(), options)


def byte_tokenizer() -> Tokenizer:
    """A token for each of the 256 bytes, one that ends a text, and one for padding."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({character: i for i, character in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<end>", special=True), AddedToken("<pad>", special=True)])
    return tokenizer


def transformers_tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=byte_tokenizer(), eos_token="<end>", pad_token="<pad>", model_max_length=MAX_LENGTH
    )


def random_ids(length: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, EOS, length).tolist()
