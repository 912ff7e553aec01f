"""Batches: every example once, padded and masked rightly; choices are scored question by question."""

import logging
import math
import random
from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from federation_cases import tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from clients.batches import Batch, Tokenized, evaluation_batches, scores, tokenize, training_batches
from clients.examples import Classified, MultipleChoice

CPU = torch.device("cpu")
PAD = 0

few = settings(max_examples=30, deadline=None)
texts = st.lists(st.integers(1, 99), min_size=1, max_size=12)
classified = st.builds(lambda text, label: Tokenized((text,), label), texts, st.integers(0, 4))
questions = st.lists(texts, min_size=2, max_size=5).map(lambda choices: Tokenized(tuple(choices), 1))
example_lists = st.lists(classified, min_size=1, max_size=50) | st.lists(questions, min_size=1, max_size=30)


def unbatched(batches: Sequence[Batch]) -> Counter[tuple[tuple[tuple[int, ...], ...], int]]:
    """The examples in some batches, read back through mask and counts."""
    found: Counter[tuple[tuple[tuple[int, ...], ...], int]] = Counter()
    for batch in batches:
        padded = zip(batch.input_ids, batch.attention_mask, strict=True)
        rows = [tuple(ids[mask.bool()].tolist()) for ids, mask in padded]
        start = 0
        for count, target in zip(batch.counts, batch.targets.tolist(), strict=True):
            found[tuple(rows[start : start + count]), target] += 1
            start += count
        assert start == len(rows)
    return found


def counted(examples: Sequence[Tokenized]) -> Counter[tuple[tuple[tuple[int, ...], ...], int]]:
    return Counter((tuple(map(tuple, example.texts)), example.target) for example in examples)


@few
@given(examples=example_lists, size=st.integers(1, 9), seed=st.integers(0, 2**32 - 1))
def test_an_epoch_holds_every_example_once(examples: list[Tokenized], size: int, seed: int) -> None:
    training = list(training_batches(examples, size, PAD, seed, CPU))
    evaluation = list(evaluation_batches(examples, size, PAD, CPU))
    for batches in (training, evaluation):
        assert unbatched(batches) == counted(examples)
        assert all(1 <= len(batch.counts) <= size for batch in batches)


@few
@given(examples=example_lists, size=st.integers(1, 9))
def test_texts_are_padded_on_the_right_to_the_longest_of_their_batch(
    examples: list[Tokenized], size: int
) -> None:
    for batch in evaluation_batches(examples, size, PAD, CPU):
        lengths = batch.attention_mask.sum(1)
        assert batch.input_ids.shape == batch.attention_mask.shape == (sum(batch.counts), lengths.max())
        for ids, mask, length in zip(batch.input_ids, batch.attention_mask, lengths, strict=True):
            assert mask.tolist() == [1] * length + [0] * (len(mask) - length)
            assert (ids[length:] == PAD).all()
            assert (ids[:length] != PAD).all()


def numbered(count: int) -> list[Tokenized]:
    return [Tokenized(([number + 1] * (1 + number % 7),), number) for number in range(count)]


def order(batches: Sequence[Batch]) -> list[int]:
    return [target for batch in batches for target in batch.targets.tolist()]


def test_order_of_an_epoch_depends_on_the_seed_alone() -> None:
    examples = numbered(60)
    first = order(list(training_batches(examples, 4, PAD, 5, CPU)))
    torch.manual_seed(1)
    random.seed(1)
    assert order(list(training_batches(examples, 4, PAD, 5, CPU))) == first
    assert order(list(training_batches(examples, 4, PAD, 6, CPU))) != first
    assert first != sorted(first)


def test_texts_of_similar_length_are_batched_together() -> None:
    examples = [Tokenized(([1] * (40 if number % 2 else 4),), number) for number in range(64)]
    batches = list(training_batches(examples, 8, PAD, 0, CPU))
    padding = sum(int((batch.attention_mask == 0).sum()) for batch in batches)
    # In random order a batch of eight almost surely mixes both lengths: half of its texts are padding.
    assert padding < 0.1 * sum(batch.input_ids.numel() for batch in batches)


def test_text_without_tokens_becomes_padding_only() -> None:
    (alone,) = evaluation_batches([Tokenized(([],), 0)], 2, 9, CPU)
    assert (alone.input_ids.tolist(), alone.attention_mask.tolist()) == ([[9]], [[0]])
    (batch,) = evaluation_batches([Tokenized(([],), 0), Tokenized(([7, 8],), 1)], 2, PAD, CPU)
    assert batch.input_ids.tolist() == [[PAD, PAD], [7, 8]]
    assert batch.attention_mask.tolist() == [[0, 0], [1, 1]]
    assert batch.input_ids.dtype == torch.long


# ------------------------------------------------------------------ scores


def batch_of(counts: Sequence[int]) -> Batch:
    empty = torch.zeros(sum(counts), 1, dtype=torch.long)
    return Batch(empty, empty, tuple(counts), torch.zeros(len(counts), dtype=torch.long))


@few
@given(counts=st.lists(st.integers(2, 6), min_size=1, max_size=8), seed=st.integers(0, 999))
def test_scores_of_choices_are_those_of_each_question_by_itself(counts: list[int], seed: int) -> None:
    logits = torch.randn(sum(counts), 1, generator=torch.Generator().manual_seed(seed))
    table = scores(logits, batch_of(counts))
    assert table.shape == (len(counts), max(counts))
    start = 0
    for row, count in zip(table, counts, strict=True):
        assert row[:count].tolist() == logits[start : start + count, 0].tolist()
        assert row[count:].tolist() == [-math.inf] * (max(counts) - count)
        start += count


def test_scores_of_classified_texts_are_their_logits() -> None:
    logits: Tensor = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    assert scores(logits, batch_of([1, 1, 1])).tolist() == logits.tolist()


# ------------------------------------------------------------------ tokens


def test_texts_become_the_tokens_of_each_by_itself() -> None:
    tokenizer = tiny_tokenizer()
    examples = [Classified("the bark of my milk", 1), Classified("sky", 0), Classified("", 2)]
    tokens = tokenize(examples, tokenizer, 16)
    assert tokens == [Tokenized((tokenizer(e.text)["input_ids"],), e.label) for e in examples]
    assert tokens[1].length == 3  # with [CLS] and [SEP]


def test_every_choice_becomes_a_text_of_its_own() -> None:
    tokenizer = tiny_tokenizer()
    examples = [
        MultipleChoice("who has a _ near the sky", ("bone", "rose", "leaf"), 2),
        MultipleChoice("the sky is", ("milk", "a leaf"), 0),
    ]
    expected = [
        ["who has a bone near the sky", "who has a rose near the sky", "who has a leaf near the sky"],
        ["the sky is milk", "the sky is a leaf"],
    ]
    tokens = tokenize(examples, tokenizer, 16)
    assert [example.target for example in tokens] == [2, 0]
    for example, filled in zip(tokens, expected, strict=True):
        assert example.texts == tuple(tokenizer(text)["input_ids"] for text in filled)


@pytest.mark.parametrize("max_length", [2, 5, 100])
def test_texts_are_cut_to_the_length_that_is_set(max_length: int) -> None:
    (example,) = tokenize([Classified("the " * 30, 0)], tiny_tokenizer(), max_length)
    assert example.length == min(max_length, 32)


@pytest.mark.parametrize(("side", "different"), [("right", 1), ("left", 3)])
def test_long_questions_keep_their_choices_when_cut_at_the_left(
    side: str, different: int, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.truncation_side = side
    question = MultipleChoice(" ".join(["who"] * 20), ("rose", "leaf", "sky"), 2)
    logger = logging.getLogger("flwr")
    logger.addHandler(caplog.handler)
    try:
        (tokenized,) = tokenize([question], tokenizer, max_length=8)
    finally:
        logger.removeHandler(caplog.handler)
    assert {len(text) for text in tokenized.texts} == {8}
    assert len(set(map(tuple, tokenized.texts))) == different
    warned = "1 of 1 questions are longer than train.max-length = 8" in caplog.text
    assert warned == (side == "right")
