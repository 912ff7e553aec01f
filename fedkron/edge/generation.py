"""Generate text with an exported language model: numpy, onnxruntime and tokenizers are enough."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedkron.edge.language_model import LanguageModelInput
from fedkron.errors import ConfigError, TaskError

try:
    from onnxruntime import InferenceSession, OrtValue
    from tokenizers import Tokenizer
except ImportError as error:
    raise ImportError("a bundle needs onnxruntime and tokenizers: pip install 'fedkron[edge]'") from error

LOGITS = "logits"

Logits = npt.NDArray[np.float32]
Tokens = npt.NDArray[np.int64]
Choose = Callable[[Logits], Tokens]
"""Logits (batch, vocabulary) to the next token of each row, (batch,)."""

Adapter = Mapping[str, npt.NDArray[Any]]
"""The graph's inputs for an adapter by name, with one row for all prompts, or a row for each."""


@dataclass(frozen=True)
class Generator:
    """A language model that is ready to write. Its methods may run in several threads.

    `session` holds the graph of `fedkron.edge.decoder.export_decoder`, with or without inputs for an
    adapter; `tokenizer` neither pads nor cuts.
    """

    session: InferenceSession
    tokenizer: Tokenizer
    form: LanguageModelInput

    def generate(
        self,
        prompts: Sequence[str],
        *,
        adapter: Adapter,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> list[str]:
        """Continue several prompts together: the new text of each, without the prompt and special tokens.

        A text ends before an end-of-text token, after `max_new_tokens`, or when it is `max_length` tokens
        long with its prompt; unfinished characters at its end are left out. `temperature` 0 always takes
        the most probable token; above 0, tokens are drawn from the most probable ones that together reach
        the probability `top_p`. Row i draws with a random generator of its own, made from (`seed`, i).

        Raises `ConfigError` for a setting out of range, `TaskError` for a prompt without tokens or one
        that leaves no room for a new token.
        """
        ids = self._encode(prompts)
        choose = sampler(len(ids), temperature=temperature, top_p=top_p, seed=seed)
        readers = [_PieceReader(self.tokenizer, prompt) for prompt in ids]
        pieces: list[list[str]] = [[] for _ in ids]
        for tokens in self.tokens(ids, choose, adapter=adapter, max_new_tokens=max_new_tokens):
            for row, token in tokens.items():
                pieces[row].append(readers[row].next(token))
        return list(map("".join, pieces))

    def stream(
        self,
        prompt: str,
        *,
        adapter: Adapter,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Iterator[str]:
        """Continue a prompt piece by piece: joined, the pieces are what `generate` gives. Raises like it."""
        ids = self._encode([prompt])
        choose = sampler(1, temperature=temperature, top_p=top_p, seed=seed)
        tokens = self.tokens(ids, choose, adapter=adapter, max_new_tokens=max_new_tokens)
        reader = _PieceReader(self.tokenizer, ids[0])
        pieces = (reader.next(token[0]) for token in tokens)
        return (piece for piece in pieces if piece)

    def tokens(
        self, prompts: Sequence[Sequence[int]], choose: Choose, *, adapter: Adapter, max_new_tokens: int
    ) -> Iterator[dict[int, int]]:
        """Continue prompts given as token ids: per step the new token of each row that has not ended.

        An end-of-text token is not among them. Raises like `generate`.
        """
        if max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens is {max_new_tokens}: give 1 or more")
        longest = max(map(len, prompts), default=0)
        if not prompts or not all(map(len, prompts)):
            raise TaskError("there is a prompt without tokens, or no prompt: there is nothing to continue")
        if longest >= self.form.max_length:
            raise TaskError(
                f"a prompt has {longest} tokens: this model takes {self.form.max_length} with the new ones, "
                "make it shorter"
            )
        return self._steps(prompts, choose, adapter, max_new_tokens)

    def _steps(
        self, prompts: Sequence[Sequence[int]], choose: Choose, adapter: Adapter, max_new_tokens: int
    ) -> Iterator[dict[int, int]]:
        lengths = np.array([len(tokens) for tokens in prompts])
        limits = np.minimum(max_new_tokens, self.form.max_length - lengths)
        mask = (np.arange(lengths.max()) >= lengths.max() - lengths[:, None]).astype(np.int64)
        ids = np.full(mask.shape, self.form.pad_id, np.int64)
        ids[mask == 1] = np.concatenate([np.asarray(tokens, np.int64) for tokens in prompts])
        constant = {name: OrtValue.ortvalue_from_numpy(array) for name, array in adapter.items()}
        cache = self._empty_cache(len(prompts))
        alive = np.full(len(prompts), True)
        for step in range(limits.max()):
            new = {"input_ids": ids, "attention_mask": mask}
            inputs = {name: OrtValue.ortvalue_from_numpy(array) for name, array in new.items()}
            # The cache stays where ONNX Runtime has put it, and is never copied to Python.
            logits, *present = self.session.run_with_ort_values(
                [LOGITS, *self.form.present_names], inputs | constant | cache
            )
            cache = dict(zip(self.form.past_names, present, strict=True))
            chosen = choose(logits.numpy())
            alive &= ~np.isin(chosen, self.form.eos_ids)
            if not alive.any():
                return
            yield {int(row): int(chosen[row]) for row in np.flatnonzero(alive)}
            alive &= step + 1 < limits
            # Rows that have ended go on with padding, which does not move their position.
            ids = np.where(alive, chosen, self.form.pad_id)[:, None]
            mask = np.column_stack([mask, alive.astype(np.int64)])

    def _empty_cache(self, rows: int) -> dict[str, OrtValue]:
        empty = np.empty((rows, self.form.key_value_heads, 0, self.form.head_size), np.float32)
        return {name: OrtValue.ortvalue_from_numpy(empty) for name in self.form.past_names}

    def _encode(self, prompts: Sequence[str]) -> list[list[int]]:
        if isinstance(prompts, str):
            raise TaskError(f"prompt {prompts!r} stands alone: give a list of prompts")
        return [encoding.ids for encoding in self.tokenizer.encode_batch(list(prompts))]


def sampler(rows: int, *, temperature: float, top_p: float, seed: int) -> Choose:
    """How to choose the next tokens: always the most probable (`temperature` 0), or by drawing.

    Raises `ConfigError` for a negative temperature, or a top_p outside of (0, 1].
    """
    if not 0 <= temperature < np.inf:
        raise ConfigError(f"temperature is {temperature}: give 0 for the most probable token, or more")
    if not 0 < top_p <= 1:
        raise ConfigError(f"top_p is {top_p}: give a probability above 0, up to 1")
    if temperature == 0:
        return lambda logits: logits.argmax(-1)
    generators = [np.random.default_rng([seed, row]) for row in range(rows)]

    def draw(logits: Logits) -> Tokens:
        pairs = zip(generators, logits, strict=True)
        chosen = [_draw(rng, nucleus(row, temperature, top_p)) for rng, row in pairs]
        return np.array(chosen, np.int64)

    return draw


def nucleus(logits: Logits, temperature: float, top_p: float) -> npt.NDArray[np.float64]:
    """Probabilities (vocabulary,) of softmax(logits / temperature), cut to the nucleus and renormalised.

    The nucleus is the smallest set of most probable tokens whose probability is at least `top_p`
    (Holtzman et al., 2020, The Curious Case of Neural Text Degeneration).
    """
    scaled = (logits.astype(np.float64) - logits.max()) / temperature
    probabilities = np.exp(scaled)
    probabilities /= probabilities.sum()
    # No token below this can be in the nucleus: all of them together are less than 1 - top_p.
    candidates = np.flatnonzero(probabilities >= (1 - top_p) / len(probabilities))
    order = candidates[np.argsort(-probabilities[candidates], kind="stable")]
    before = np.cumsum(probabilities[order]) - probabilities[order]
    kept = order[before < top_p]
    cut: npt.NDArray[np.float64] = np.zeros_like(probabilities)
    cut[kept] = probabilities[kept] / probabilities[kept].sum()
    return cut


def _draw(rng: np.random.Generator, probabilities: npt.NDArray[np.float64]) -> int:
    cumulative = np.cumsum(probabilities)
    # The last one is exactly 1 then, and no random number reaches it.
    return int(np.searchsorted(cumulative / cumulative[-1], rng.random(), side="right"))


class _PieceReader:
    """Tokens to text, one at a time: a piece comes when its last character is complete.

    What a token means can depend on those before it (a space, the first byte of a character), so tokens
    are decoded together with those of the last piece, at first with the prompt.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._known, self._new = list(prompt), list[int]()

    def next(self, token: int) -> str:
        """The text that this token completes, or nothing."""
        self._new.append(token)
        known = self._tokenizer.decode(self._known)
        both = self._tokenizer.decode(self._known + self._new)
        if len(both) <= len(known) or both.endswith("\ufffd"):
            return ""
        self._known, self._new = self._new, []
        return str(both[len(known) :])
