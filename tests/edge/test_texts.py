"""Texts as the graph takes them: in batches, padded on the right, cut as in training."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from edge_cases import WORDS, tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from fedkron.edge.texts import BATCH, TextInput, load_tokenizer, text_batches, tokenize
from fedkron.errors import TaskError

SETTINGS = TextInput(max_length=7, pad_id=0, truncation_side="right")
texts_of_words = st.lists(st.lists(st.sampled_from([*WORDS, "☂"]), max_size=12).map(" ".join), max_size=80)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(tiny_tokenizer().backend_tokenizer.to_str(), encoding="utf-8")
    return path


@settings(deadline=None)
@given(texts_of_words, st.sampled_from(["left", "right"]), st.integers(3, 15))
def test_token_ids_are_those_of_transformers(
    file: Path, texts: list[str], side: str, max_length: int
) -> None:
    reference = tiny_tokenizer()
    reference.truncation_side = side
    expected = [reference(text, truncation=True, max_length=max_length)["input_ids"] for text in texts]
    settings = TextInput(max_length, 0, side)
    assert tokenize(load_tokenizer(file, settings), texts) == expected


@settings(deadline=None)
@given(texts_of_words)
def test_every_text_is_in_one_batch_with_its_like(file: Path, texts: list[str]) -> None:
    tokenizer, settings = load_tokenizer(file, SETTINGS), replace(SETTINGS, pad_id=5)
    expected = tokenize(tokenizer, texts)
    seen, lengths = [], []
    for rows, feeds in text_batches(tokenizer, settings, texts):
        ids, mask = feeds["input_ids"], feeds["attention_mask"]
        assert list(feeds) == ["input_ids", "attention_mask"]
        assert ids.dtype == mask.dtype == np.int64
        assert ids.shape == mask.shape == (len(rows), max(len(expected[row]) for row in rows))
        assert 0 < len(rows) <= BATCH
        for row, padded, present in zip(rows, ids, mask, strict=True):
            length = len(expected[row])
            assert padded.tolist() == expected[row] + [5] * (len(padded) - length)
            assert present.tolist() == [1] * length + [0] * (len(padded) - length)
            lengths.append(length)
        seen += rows
    assert sorted(seen) == list(range(len(texts)))
    assert lengths == sorted(lengths)


def test_a_tokenizer_that_pads_by_itself_does_not(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_str(tiny_tokenizer().backend_tokenizer.to_str())
    tokenizer.enable_padding(length=20)
    tokenizer.enable_truncation(2)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(tmp_path / "tokenizer.json", SETTINGS)
    assert [len(ids) for ids in tokenize(loaded, ["red", "red cat blue", "a a a a a a a a a"])] == [3, 5, 7]


def test_texts_that_cannot_run_are_refused(tmp_path: Path) -> None:
    bare = Tokenizer.from_str(tiny_tokenizer().backend_tokenizer.to_str())
    bare.post_processor = None
    bare.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path / "tokenizer.json", SETTINGS)
    with pytest.raises(TaskError, match="text ' ' has no tokens: leave it out"):
        list(text_batches(tokenizer, SETTINGS, ["red", " "]))
    with pytest.raises(TaskError, match="text 'red' stands alone: give a list"):
        tokenize(tokenizer, "red")


def test_settings_are_written_and_read() -> None:
    content = SETTINGS.to_json()
    assert content == {
        "kind": "text",
        "names": ["input_ids", "attention_mask"],
        "max_length": 7,
        "pad_id": 0,
        "truncation_side": "right",
    }
    assert TextInput.from_json(content) == SETTINGS


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "image"},
        {"names": ["input_ids"]},
        {"max_length": "7"},
        {"truncation_side": "middle"},
        {"comment": "hello"},
    ],
)
def test_other_settings_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="is not that of a text base"):
        TextInput.from_json(SETTINGS.to_json() | change)
