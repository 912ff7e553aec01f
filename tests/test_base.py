"""The base: what is loaded, its fingerprint, and the features that a head sees."""

import copy
import hashlib
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    AutoModel,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)

from fedkron.adapters import AdapterSpec, adapter_layout, attach
from fedkron.base import (
    FEATURE_NORM,
    Base,
    TaskModel,
    empty_backbone,
    fingerprint,
    load_base,
    mean_pool,
    text_features,
)
from fedkron.demo import resolve_base
from fedkron.errors import ConfigError, TaskError

MINILM = "demo:all-minilm-l6-v2"
TEXTS = [
    "Who wrote Hamlet ?",
    "a",
    "What is the longest river between the Rhine and the Volga , and who measured it first ?",
]
WORDS = ["[UNK]", "</s>", "who", "wrote", "the", "play", "what", "is", "a", "pipe"]
SIZE = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16, "vocab_size": len(WORDS)}
DECODERS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SIZE, intermediate_size=24, num_key_value_heads=1),
    "gpt2": GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=len(WORDS)),
}


@pytest.fixture(scope="module")
def minilm() -> Base:
    return load_base(MINILM)


def save_tiny(folder: Path, config: PreTrainedConfig, *, dtype: torch.dtype, **special_tokens: str) -> str:
    """A random model and a tokenizer of whole words, as `save_pretrained` leaves them."""
    torch.manual_seed(0)
    AutoModel.from_config(config).to(dtype).save_pretrained(folder)
    words = models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]")
    tokenizer = Tokenizer(words)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special_tokens).save_pretrained(folder)
    return str(folder)


@torch.no_grad()
def features(base: Base, texts: list[str]) -> np.ndarray:
    tokens = base.tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
    return text_features(base.backbone, tokens["input_ids"], tokens["attention_mask"]).numpy()


# Loading.


def test_a_base_is_float32_in_evaluation_mode_and_has_no_pooler(minilm: Base) -> None:
    assert minilm.name == MINILM
    assert minilm.hidden_size == 384
    assert {p.dtype for p in minilm.backbone.parameters()} == {torch.float32}
    assert not any(module.training for module in minilm.backbone.modules())
    assert not any("pooler" in name for name in minilm.backbone.state_dict())


def test_loading_twice_gives_the_same_fingerprint(minilm: Base) -> None:
    assert load_base(MINILM).fingerprint == minilm.fingerprint == fingerprint(minilm.backbone)


@pytest.mark.parametrize("kind", ["kron_lora", "lora"])
def test_the_empty_backbone_has_the_adapter_layout_of_the_loaded_one(minilm: Base, kind: str) -> None:
    empty = empty_backbone(MINILM)
    assert all(p.is_meta for p in empty.parameters())
    layout = adapter_layout(attach(empty, AdapterSpec(kind)), minilm.fingerprint)
    loaded = adapter_layout(attach(copy.deepcopy(minilm.backbone), AdapterSpec(kind)), minilm.fingerprint)
    assert layout == loaded
    assert len(layout.modules) == 36


def test_a_folder_saved_by_save_pretrained_loads_by_its_path(tmp_path: Path) -> None:
    config = BertConfig(**SIZE, intermediate_size=24)
    name = save_tiny(tmp_path, config, dtype=torch.bfloat16, pad_token="[UNK]")
    base = load_base(name)
    assert (base.name, base.hidden_size) == (name, 16)
    assert {p.dtype for p in base.backbone.parameters()} == {torch.float32}
    torch.manual_seed(0)
    expected = AutoModel.from_config(config).to(torch.bfloat16).float()
    expected.pooler = None
    assert base.fingerprint == fingerprint(expected)
    assert adapter_layout(attach(empty_backbone(name), AdapterSpec()), "") == adapter_layout(
        attach(base.backbone, AdapterSpec()), ""
    )


@pytest.mark.parametrize("special_tokens", [{"eos_token": "</s>"}, {}])
@pytest.mark.parametrize("family", DECODERS)
def test_a_decoder_without_padding_token_can_be_batched_and_padding_changes_no_feature(
    tmp_path: Path, family: str, special_tokens: dict[str, str]
) -> None:
    base = load_base(save_tiny(tmp_path, DECODERS[family], dtype=torch.float32, **special_tokens))
    assert base.tokenizer.pad_token == special_tokens.get("eos_token", WORDS[0])
    texts = ["who wrote the play", "what", "is a pipe a pipe"]
    alone = np.concatenate([features(base, [text]) for text in texts])
    np.testing.assert_allclose(features(base, texts), alone, atol=1e-5)


@pytest.mark.parametrize("load", [load_base, empty_backbone])
def test_a_base_that_does_not_exist_is_refused_by_name(tmp_path: Path, load: object) -> None:
    for name in (str(tmp_path / "nowhere"), "not a hub id"):
        with pytest.raises(ConfigError, match=f"base '{name}' cannot be loaded .no such folder here"):
            load(name)  # type: ignore[operator]
    with pytest.raises(TaskError, match=r"no demo base 'no-such-base'"):
        load("demo:no-such-base")  # type: ignore[operator]


@pytest.mark.parametrize("damaged", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_folder_with_a_damaged_or_missing_file_is_refused_by_name(tmp_path: Path, damaged: str) -> None:
    name = save_tiny(tmp_path, DECODERS["gpt2"], dtype=torch.float32)
    content = (tmp_path / damaged).read_bytes()
    (tmp_path / damaged).write_bytes(content[: len(content) // 2])
    with pytest.raises(ConfigError, match=f"base '{name}' cannot be loaded .the folder exists"):
        load_base(name)
    (tmp_path / damaged).unlink()
    with pytest.raises(ConfigError, match=f"base '{name}' cannot be loaded .the folder exists"):
        load_base(name)


# The fingerprint.


def two_layers(*names: str) -> nn.Module:
    torch.manual_seed(0)
    layers = {"a": nn.Linear(2, 3), "b": nn.LayerNorm(3)}
    model = nn.Sequential(OrderedDict((name, layers[name]) for name in names))
    model.register_buffer("steps", torch.tensor(7))
    return model


def test_the_fingerprint_is_the_hash_of_all_weights_by_name() -> None:
    model = two_layers("b", "a")
    digest = hashlib.sha256()
    for name in ("a.bias", "a.weight", "b.bias", "b.weight", "steps"):
        array = model.state_dict()[name].numpy()
        digest.update(f"{name} torch.{array.dtype} {list(array.shape)}\n".encode() + array.tobytes())
    assert fingerprint(model) == digest.hexdigest()


def test_the_fingerprint_does_not_depend_on_order_trainability_or_memory_layout() -> None:
    model = two_layers("a", "b").requires_grad_(False)
    other = two_layers("b", "a")
    assert list(model.state_dict()) != list(other.state_dict())
    other.a.weight = nn.Parameter(other.a.weight.detach().T.contiguous().T)
    assert not other.a.weight.is_contiguous()
    assert fingerprint(model) == fingerprint(other)


def test_the_fingerprint_of_a_real_base_changes_with_the_last_bit_of_one_weight(minilm: Base) -> None:
    changed = copy.deepcopy(minilm.backbone)
    weight = changed.encoder.layer[3].output.dense.weight
    with torch.no_grad():
        weight[7, 11] = torch.nextafter(weight[7, 11], torch.tensor(torch.inf))
    assert fingerprint(changed) != minilm.fingerprint


def test_the_fingerprint_changes_with_names_shapes_dtypes_and_buffers() -> None:
    renamed, reshaped, buffer = two_layers("a", "b"), two_layers("a", "b"), two_layers("a", "b")
    renamed.c = renamed.b
    del renamed.b
    reshaped.a.weight = nn.Parameter(reshaped.a.weight.detach().reshape(2, 3))
    buffer.steps += 1
    bits = two_layers("a", "b")
    bits.a.weight = nn.Parameter(bits.a.weight.detach().view(torch.int32), requires_grad=False)
    all_of_them = [two_layers("a", "b"), renamed, reshaped, buffer, bits, two_layers("a", "b").bfloat16()]
    assert len({fingerprint(model) for model in all_of_them}) == len(all_of_them)


# Features and the head on top.


def test_text_features_are_the_normalised_mean_of_the_hidden_states_of_the_real_tokens(minilm: Base) -> None:
    independent = AutoModel.from_pretrained(resolve_base(MINILM), dtype=torch.float32).eval()
    tokens = minilm.tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = independent(**tokens).last_hidden_state.numpy().astype(np.float64)
    lengths = tokens["attention_mask"].sum(1).tolist()
    assert len(set(lengths)) == 3  # some rows have padding
    means = np.stack([row[:length].mean(0) for row, length in zip(hidden, lengths, strict=True)])
    expected = 10 * means / np.linalg.norm(means, axis=1, keepdims=True)
    np.testing.assert_allclose(features(minilm, TEXTS), expected, atol=1e-5)


def test_padding_changes_no_feature(minilm: Base) -> None:
    alone = np.concatenate([features(minilm, [text]) for text in TEXTS])
    np.testing.assert_allclose(features(minilm, TEXTS), alone, atol=1e-5)


def test_the_mean_of_a_text_without_tokens_is_zero_not_nan() -> None:
    hidden = torch.randn(2, 3, 4)
    mask = torch.tensor([[1, 0, 1], [0, 0, 0]])
    pooled = mean_pool(hidden, mask)
    torch.testing.assert_close(pooled[0], (hidden[0, 0] + hidden[0, 2]) / 2)
    assert torch.equal(pooled[1], torch.zeros(4))


def test_a_task_model_starts_at_zero_and_then_is_linear_in_the_features(minilm: Base) -> None:
    model = TaskModel(minilm.backbone, outputs=5)
    tokens = minilm.tokenizer(TEXTS, padding=True, return_tensors="pt")
    ids, mask = tokens["input_ids"], tokens["attention_mask"]
    with torch.no_grad():
        assert torch.equal(model(ids, mask), torch.zeros(3, 5))
        nn.init.normal_(model.head.weight)
        nn.init.normal_(model.head.bias)
        logits = model(ids, mask).numpy()
    seen = features(minilm, TEXTS)
    np.testing.assert_allclose(np.linalg.norm(seen, axis=1), FEATURE_NORM, rtol=1e-5)
    weight, bias = model.head.weight.detach().numpy(), model.head.bias.detach().numpy()
    np.testing.assert_allclose(logits, seen @ weight.T + bias, atol=1e-4)
