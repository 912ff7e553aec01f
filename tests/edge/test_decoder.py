"""A language model as a graph with a cache gives torch's logits, whatever is fed in whatever parts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import pytest
import torch
from decoder_cases import (
    CONFIGS,
    EOS,
    MAX_LENGTH,
    PAD,
    SIZE,
    exported_decoder,
    open_graph,
    random_ids,
    tiny_decoder,
    transformers_tokenizer,
)
from edge_cases import SPECS, with_adapter
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    PreTrainedModel,
)

from fedkron.edge.decoder import export_decoder, language_model_input
from fedkron.edge.graph import copy_model
from fedkron.edge.language_model import LanguageModelInput
from fedkron.edge.slot_graph import insert_slot
from fedkron.errors import BundleError, ConfigError

Feeds = dict[str, np.ndarray]
Texts = Sequence[Sequence[int]]
Make = Callable[[], PreTrainedModel]


class Running(NamedTuple):
    session: onnxruntime.InferenceSession
    form: LanguageModelInput


@torch.no_grad()
def logits_alone(model: PreTrainedModel, tokens: Sequence[int]) -> np.ndarray:
    """What torch says after each token of one text, without cache and padding: (tokens, vocabulary)."""
    logits: np.ndarray = model(torch.tensor([tokens])).logits[0].numpy()
    return logits


def empty_cache(form: LanguageModelInput, rows: int) -> Feeds:
    shape = (rows, form.key_value_heads, 0, form.head_size)
    return {name: np.zeros(shape, np.float32) for name in form.past_names}


def logits_in_parts(graph: Running, texts: Texts, parts: Sequence[int], adapter: Feeds) -> list[np.ndarray]:
    """Texts padded on the left, fed in parts of these many tokens: the logits after each part."""
    session, form = graph
    longest = max(map(len, texts))
    assert sum(parts) == longest
    ids = np.array([[PAD] * (longest - len(text)) + list(text) for text in texts])
    mask = np.array([[0] * (longest - len(text)) + [1] * len(text) for text in texts])
    cache, start, found = empty_cache(form, len(texts)), 0, []
    for part in parts:
        end = start + part
        feeds = {"input_ids": ids[:, start:end], "attention_mask": mask[:, :end]} | cache | adapter
        logits, *present = session.run(["logits", *form.present_names], feeds)
        assert all(p.shape == (len(texts), form.key_value_heads, end, form.head_size) for p in present)
        cache = dict(zip(form.past_names, present, strict=True))
        found.append(logits)
        start = end
    return found


def largest_difference(
    graph: Running, models: Sequence[PreTrainedModel], texts: Texts, parts: Sequence[int], adapter: Feeds
) -> float:
    """Of two logits after any part; the text in row i is also what `models[i]` reads alone."""
    expected = [logits_alone(model, text) for model, text in zip(models, texts, strict=True)]
    longest, differences = max(map(len, texts)), []
    for logits, end in zip(logits_in_parts(graph, texts, parts, adapter), np.cumsum(parts), strict=True):
        for row, text in enumerate(texts):
            position = end - 1 - (longest - len(text))
            if position >= 0:
                differences.append(np.abs(logits[row] - expected[row][position]).max())
    assert len(differences) > len(parts)
    return float(max(differences))


@pytest.mark.parametrize("family", CONFIGS)
def test_every_step_gives_torchs_logits(family: str) -> None:
    case = exported_decoder(family)
    graph = Running(case.generator.session, case.generator.form)
    # Longer than the windows of 5, and padded by more than one.
    texts = [random_ids(14, 1), random_ids(9, 2), random_ids(1, 3)]
    scale = np.abs(logits_alone(case.model, texts[0])).max()
    for parts in ([1] * 14, [14], [7, *[1] * 7], [2, 5, 1, 6]):
        found = largest_difference(graph, [case.model] * 3, texts, parts, {})
        assert found < 1e-5 * max(1, scale)


def test_the_window_of_a_layer_is_seen_in_its_logits() -> None:
    """A window that reached further than the texts would make the test above pass for any window."""
    model = exported_decoder("mistral").model
    wider = copy.deepcopy(model)
    wider.config.sliding_window = None
    text = random_ids(14, 1)
    difference = np.abs(logits_alone(model, text) - logits_alone(wider, text)).max(1)
    assert (difference[:5] < 1e-5).all()
    assert (difference[5:] > 1e-2).all()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", SPECS)
def test_rows_with_different_adapters_on_all_layers_give_torchs_logits(family: str, kind: str) -> None:
    case = exported_decoder(family)
    adapted = [with_adapter(case.model, SPECS[kind], "base", seed) for seed in (1, 2)]
    layout = adapted[0][1].layout
    assert "lm_head" in {module.path for module in layout.modules}
    graph = copy_model(case.graph)
    slot = insert_slot(graph, layout, "fp32")
    packed = [slot.pack(adapter.state) for _, adapter in adapted] + [slot.zeros()]
    rows = {name: np.stack([arrays[name] for arrays in packed]) for name in packed[0]}
    texts = [random_ids(8, 1), random_ids(8, 1), random_ids(6, 1)]
    models = [*(model for model, _ in adapted), case.model]
    adaptable = Running(open_graph(graph), case.generator.form)
    scale = max(np.abs(logits_alone(model, texts[0])).max() for model in models)
    found = largest_difference(adaptable, models, texts, [4, 1, 1, 2], rows)
    assert found < 1e-5 * max(1, scale)
    alone = {name: array[None] for name, array in packed[1].items()}
    found = largest_difference(adaptable, [models[1]] * 2, texts[1:], [5, 1, 2], alone)
    assert found < 1e-5 * max(1, scale)


def test_a_graph_has_the_inputs_and_outputs_that_the_manifest_names() -> None:
    case = exported_decoder("llama")
    form, graph = case.generator.form, case.graph.graph
    shapes = {
        info.name: [axis.dim_param or axis.dim_value for axis in info.type.tensor_type.shape.dim]
        for info in (*graph.input, *graph.output)
    }
    cache = {name: ["batch", 2, "past", 8] for name in form.past_names}
    present = {name: ["batch", 2, "past + sequence", 8] for name in form.present_names}
    tokens = {"input_ids": ["batch", "sequence"], "attention_mask": ["batch", "past + sequence"]}
    assert shapes == tokens | cache | {"logits": ["batch", SIZE["vocab_size"]]} | present
    assert tuple(info.name for info in graph.input) == form.names


def test_what_the_manifest_says_comes_from_model_and_tokenizer() -> None:
    form = exported_decoder("qwen3").generator.form
    assert form == LanguageModelInput(MAX_LENGTH, PAD, (EOS,), 1, 2, 16)
    assert LanguageModelInput.from_json(form.to_json()) == form

    model, tokenizer = tiny_decoder("llama"), transformers_tokenizer()
    assert model.generation_config is not None
    model.generation_config.eos_token_id = [9, 4]
    tokenizer.pad_token = None
    form = language_model_input(model, tokenizer, 20)
    assert (form.eos_ids, form.pad_id, form.max_length) == ((4, 9, EOS), 4, 20)


@pytest.mark.parametrize("max_length", [1, MAX_LENGTH + 1])
def test_a_length_that_the_model_cannot_take_is_refused(max_length: int) -> None:
    with pytest.raises(ConfigError, match=f"{max_length}.* takes 2 to {MAX_LENGTH} tokens"):
        language_model_input(tiny_decoder("llama"), transformers_tokenizer(), max_length)


@pytest.mark.parametrize("change", [{"kind": "text"}, {"names": ["input_ids"]}, {"layers": "two"}])
def test_a_manifest_that_was_altered_is_refused(change: dict[str, Any]) -> None:
    content = LanguageModelInput(9, 0, (1,), 2, 3, 4).to_json()
    with pytest.raises(ValueError, match=r"text|past_key_values\.1\.value|two"):
        LanguageModelInput.from_json(content | change)
    del content["head_size"]
    with pytest.raises(KeyError, match="head_size"):
        LanguageModelInput.from_json(content)


class WithoutPositions(GPT2LMHeadModel):
    """Counts positions by itself, and so takes those of a padded text from its row."""

    def forward(self, *args: object, position_ids: torch.Tensor | None = None, **kwargs: object) -> object:  # noqa: ARG002
        return super().forward(*args, **kwargs)


SMALL = dict(SIZE, num_hidden_layers=1)
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(
            lambda: AutoModelForCausalLM.from_config(BloomConfig(hidden_size=32, n_layer=1, n_head=4)),
            "BloomForCausalLM does not take a mask",
            id="attention that is biased by the mask",
        ),
        pytest.param(
            lambda: AutoModelForCausalLM.from_config(
                MambaConfig(hidden_size=32, num_hidden_layers=1, vocab_size=60)
            ),
            "MambaForCausalLM has layers of linear_attention|cache of MambaForCausalLM",
            id="no attention",
        ),
        pytest.param(
            lambda: LlamaForCausalLM(
                LlamaConfig(
                    **SMALL, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
                )
            ),
            "positions that depend on the length",
            id="positions that depend on the length",
        ),
        pytest.param(
            lambda: LlamaForCausalLM(LlamaConfig(**SMALL)).half(), "is torch.float16", id="half precision"
        ),
        pytest.param(
            lambda: WithoutPositions(CONFIGS["gpt2"]), "gives other logits", id="logits that differ"
        ),
    ],
)
def test_models_that_cannot_run_in_a_graph_are_refused(make: Make, message: str) -> None:
    torch.manual_seed(0)
    model = make()
    with pytest.raises(BundleError, match=message):
        export_decoder(model)
