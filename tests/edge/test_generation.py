"""Generated texts are those of transformers: token by token, in batches, with adapters, and by drawing."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest
import torch
from decoder_cases import (
    CONFIGS,
    EOS,
    MAX_LENGTH,
    PAD,
    byte_tokenizer,
    exported_decoder,
    open_graph,
    random_ids,
)
from edge_cases import SPECS, with_adapter
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedModel, TemperatureLogitsWarper, TopPLogitsWarper

from fedkron.edge.generation import Generator, _PieceReader, nucleus, sampler
from fedkron.edge.graph import copy_model
from fedkron.edge.slot_graph import insert_slot
from fedkron.errors import ConfigError, TaskError

GREEDY = sampler(1, temperature=0, top_p=1, seed=0)


def written(
    generator: Generator, prompts: list[list[int]], count: int, **adapter: np.ndarray
) -> list[list[int]]:
    """New tokens of each row, the most probable ones."""
    rows: list[list[int]] = [[] for _ in prompts]
    for tokens in generator.tokens(prompts, GREEDY, adapter=adapter, max_new_tokens=count):
        for row, token in tokens.items():
            rows[row].append(token)
    return rows


def transformers_writes(model: PreTrainedModel, prompt: list[int], count: int, eos: int = EOS) -> list[int]:
    """New tokens without the end."""
    ids = torch.tensor([prompt])
    output = model.generate(  # type: ignore[operator]
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=count,
        do_sample=False,
        eos_token_id=eos,
        pad_token_id=PAD,
    )
    tokens: list[int] = output[0, len(prompt) :].tolist()
    return tokens[: tokens.index(eos)] if eos in tokens else tokens


def with_eos(generator: Generator, *eos_ids: int) -> Generator:
    return dataclasses.replace(generator, form=dataclasses.replace(generator.form, eos_ids=eos_ids))


@pytest.mark.parametrize("family", CONFIGS)
def test_greedy_tokens_are_those_of_transformers(family: str) -> None:
    case = exported_decoder(family)
    prompts = [random_ids(11, 1), random_ids(3, 2), random_ids(1, 3)]
    expected = [transformers_writes(case.model, prompt, 20) for prompt in prompts]
    assert len(set(map(tuple, expected))) == 3
    for prompt, tokens in zip(prompts, expected, strict=True):
        assert written(case.generator, [prompt], 20) == [tokens]
    assert written(case.generator, prompts, 20) == expected


def test_a_row_ends_at_any_end_token_and_the_others_go_on() -> None:
    case = exported_decoder("llama")
    prompts = [random_ids(6, 1), random_ids(4, 2)]
    long = [transformers_writes(case.model, prompt, 20) for prompt in prompts]
    end = next(token for token in long[0] if token not in long[1])
    expected = [transformers_writes(case.model, prompt, 20, eos=end) for prompt in prompts]
    assert len(expected[0]) < len(expected[1]) == 20
    assert written(with_eos(case.generator, end, EOS), prompts, 20) == expected
    assert written(with_eos(case.generator, EOS, end), prompts[:1], 20) == expected[:1]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_row_ends_when_it_is_as_long_as_the_model_takes(family: str) -> None:
    case = exported_decoder(family)
    prompts = [random_ids(60, 1), random_ids(20, 2), random_ids(63, 3)]
    rows = written(with_eos(case.generator), prompts, 100)
    assert [len(row) for row in rows] == [MAX_LENGTH - len(prompt) for prompt in prompts]
    for prompt, row in zip(prompts, rows, strict=True):
        assert row == transformers_writes(case.model, prompt, len(row), eos=PAD)


def test_each_row_is_written_with_its_adapter() -> None:
    case = exported_decoder("llama")
    adapted = [with_adapter(case.model, SPECS["kron_lora"], "base", seed) for seed in (1, 2)]
    graph = copy_model(case.graph)
    slot = insert_slot(graph, adapted[0][1].layout, "fp32")
    generator = dataclasses.replace(case.generator, session=open_graph(graph))
    packed = [slot.pack(adapter.state) for _, adapter in adapted] + [slot.zeros()]
    prompt = random_ids(6, 1)
    expected = [transformers_writes(model, prompt, 15) for model in (*(m for m, _ in adapted), case.model)]
    assert len(set(map(tuple, expected))) == 3
    rows = {name: np.stack([arrays[name] for arrays in packed]) for name in packed[0]}
    assert written(generator, [prompt] * 3, 15, **rows) == expected
    for arrays, tokens in zip(packed, expected, strict=True):
        one = {name: array[None] for name, array in arrays.items()}
        assert written(generator, [prompt] * 2, 15, **one) == [tokens] * 2


@settings(deadline=None)
@given(
    st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=40, unique=True),
    st.floats(0.2, 3),
    st.floats(0.05, 1),
)
def test_the_nucleus_is_that_of_transformers(values: list[float], temperature: float, top_p: float) -> None:
    logits = np.array(values, np.float32)
    scores = TemperatureLogitsWarper(temperature)(None, torch.tensor([values], dtype=torch.float64))
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(None, scores)
    expected = scores.softmax(-1)[0].numpy()
    found = nucleus(logits, temperature, top_p)
    assert found.sum() == pytest.approx(1)
    # At the very edge of the nucleus, rounding decides.
    edge = np.abs(np.sort(scores.softmax(-1).numpy().ravel())[::-1].cumsum() - top_p).min() < 1e-6
    if not edge:
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_tokens_are_drawn_as_often_as_they_are_probable() -> None:
    logits = np.log(np.array([[0.05, 0.5, 0.2, 0.25]], np.float32))
    choose = sampler(1, temperature=1.0, top_p=0.9, seed=0)
    counts = Counter(int(choose(logits)[0]) for _ in range(4000))
    # Without the least probable one, which the others outweigh. Five standard errors of a proportion.
    for token, probability in {1: 0.5 / 0.95, 2: 0.2 / 0.95, 3: 0.25 / 0.95}.items():
        assert abs(counts[token] / 4000 - probability) < 5 * np.sqrt(probability * (1 - probability) / 4000)
    assert counts[0] == 0


def test_drawn_texts_depend_on_seed_and_row_alone() -> None:
    generator = exported_decoder("llama").generator
    options = {"adapter": {}, "max_new_tokens": 16, "temperature": 1.0, "top_p": 0.95}
    first, second = generator.generate(["some text"] * 2, **options, seed=5)
    assert first != second
    assert generator.generate(["some text", "another, longer"], **options, seed=5)[0] == first
    assert generator.generate(["some text"], **options, seed=5) == [first]
    assert generator.generate(["some text"], **options, seed=6) != [first]
    greedy = generator.generate(["some text"], adapter={}, max_new_tokens=16)
    assert generator.generate(["some text"], **(options | {"temperature": 1e-4})) == greedy


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_pieces_are_the_text(temperature: float) -> None:
    generator = exported_decoder("gpt2").generator
    options = {"adapter": {}, "max_new_tokens": 40, "temperature": temperature, "seed": 3}
    (text,) = generator.generate(["an example"], **options)
    pieces = list(generator.stream("an example", **options))
    assert "".join(pieces) == text
    assert len(pieces) > 1
    assert all(pieces)


def metaspace_tokenizer() -> Tokenizer:
    """As LLaMA 2 and Gemma have: spaces are written ▁, and what is no token falls back to bytes."""
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)}
    vocabulary |= {token: 256 + i for i, token in enumerate(["<unk>", "▁", "a", "b", "c", "▁a", "▁b"])}
    merges = [("▁", "a"), ("▁", "b")]
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


@settings(deadline=None)
@given(
    st.sampled_from(["bytes", "metaspace"]), st.text(st.sampled_from("ab cé日🎉\n"), max_size=12), st.data()
)
def test_any_text_comes_back_in_pieces(kind: str, text: str, data: st.DataObject) -> None:
    tokenizer = {"bytes": byte_tokenizer, "metaspace": metaspace_tokenizer}[kind]()
    whole = "a" + text
    ids = tokenizer.encode(whole).ids
    ends = [i for i in range(1, len(ids) + 1) if whole.startswith(tokenizer.decode(ids[:i]))]
    prompt = data.draw(st.sampled_from(ends))
    reader = _PieceReader(tokenizer, ids[:prompt])
    pieces = [reader.next(token) for token in ids[prompt:]]
    assert tokenizer.decode(ids[:prompt]) + "".join(pieces) == whole
    assert "\ufffd" not in "".join(pieces)


def test_special_tokens_and_bytes_that_are_no_text_give_no_piece() -> None:
    tokenizer = byte_tokenizer()
    (start, end) = tokenizer.encode("é").ids
    (letter,) = tokenizer.encode("e").ids
    reader = _PieceReader(tokenizer, [letter])
    assert [reader.next(token) for token in (PAD, start, PAD, end, letter)] == ["", "", "", "é", "e"]
    assert [reader.next(token) for token in (start, letter)] == ["", "\ufffde"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
    ],
)
def test_settings_out_of_range_are_refused_at_once(change: dict[str, float], message: str) -> None:
    generator = exported_decoder("llama").generator
    options = {"adapter": {}, "max_new_tokens": 3} | change
    with pytest.raises(ConfigError, match=message):
        generator.generate(["text"], **options)
    with pytest.raises(ConfigError, match=message):
        generator.stream("text", **options)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "or no prompt"),
        (["text", ""], "a prompt without tokens"),
        (["text", "t" * MAX_LENGTH], f"a prompt has {MAX_LENGTH} tokens"),
        ("text", "stands alone"),
    ],
)
def test_prompts_that_cannot_be_continued_are_refused(prompts: list[str], message: str) -> None:
    generator = exported_decoder("llama").generator
    with pytest.raises(TaskError, match=message):
        generator.generate(prompts, adapter={}, max_new_tokens=3)
