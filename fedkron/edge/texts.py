"""Texts for a graph: token ids and masks, in batches with little padding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from fedkron.errors import TaskError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BATCH = 32
"""Texts that are run together, at most."""

Feeds = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class TextInput:
    """How texts become inputs: cut to `max_length` tokens at `truncation_side`, padded with `pad_id` on the
    right.
    """

    max_length: int
    pad_id: int
    truncation_side: str

    kind: ClassVar[str] = "text"
    names: ClassVar[tuple[str, ...]] = ("input_ids", "attention_mask")

    def to_json(self) -> dict[str, Any]:
        """The manifest's `input`."""
        return {"kind": self.kind, "names": list(self.names), **asdict(self)}

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> TextInput:
        """Inverse of `to_json`; raises `KeyError`, `TypeError` or `ValueError` for anything else."""
        settings = TextInput(
            int(content["max_length"]), int(content["pad_id"]), str(content["truncation_side"])
        )
        if settings.to_json() != content or settings.truncation_side not in ("left", "right"):
            raise ValueError(f"input {content!r} is not that of a text base")
        return settings


def load_tokenizer(path: Path, settings: TextInput) -> Tokenizer:
    """The tokenizer of a bundle, which cuts as in training and does not pad."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ImportError("a bundle needs onnxruntime and tokenizers: pip install 'fedkron[edge]'") from error

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.enable_truncation(settings.max_length, direction=settings.truncation_side)
    return tokenizer


def tokenize(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Token ids, with special tokens. Raises `TaskError` for a text without tokens."""
    if isinstance(texts, str):
        raise TaskError(f"text {texts!r} stands alone: give a list of texts")
    ids = [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
    if empty := [text for text, tokens in zip(texts, ids, strict=True) if not tokens]:
        raise TaskError(f"text {empty[0]!r} has no tokens: leave it out")
    return ids


def text_batches(
    tokenizer: Tokenizer, settings: TextInput, texts: Sequence[str]
) -> Iterator[tuple[list[int], Feeds]]:
    """Which texts are run together, and the graph's inputs for them, int64 (texts, longest).

    Texts of similar length together: less padding. Raises like `tokenize`.
    """
    ids = tokenize(tokenizer, texts)
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        padded = _pad([ids[row] for row in rows], settings.pad_id)
        yield rows, dict(zip(settings.names, padded, strict=True))


def _pad(ids: Sequence[Sequence[int]], pad_id: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Token ids and mask, padded on the right."""
    lengths = np.array([len(tokens) for tokens in ids])
    mask = np.arange(lengths.max()) < lengths[:, None]
    padded = np.full(mask.shape, pad_id, np.int64)
    padded[mask] = np.concatenate([np.asarray(tokens, np.int64) for tokens in ids])
    return padded, mask.astype(np.int64)
