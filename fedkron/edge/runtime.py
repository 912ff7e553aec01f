"""Run a bundle on a CPU with numpy, onnxruntime, tokenizers and safetensors: no torch, no transformers.

`Bundle.open(Path("my-bundle")).predict(["Who wrote Hamlet ?"], "trec")` is all that it takes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedkron.edge.manifest import ADAPTER, TOKENIZER, UNMERGED, Manifest, read_manifest, verify_files
from fedkron.edge.slot import matching_heads, slot_vector
from fedkron.errors import BundleError, ContractError, TaskError
from fedkron.exchange import AdapterFile, HeadFile, load_adapter, load_head
from fedkron.layout import Vector
from fedkron.prompts import choice_texts

try:
    import onnxruntime
    from tokenizers import Tokenizer
except ImportError as error:
    raise ImportError("a bundle needs onnxruntime and tokenizers: pip install 'fedkron[edge]'") from error

BATCH = 32
"""Texts that are run together, at most."""

# Fused, this operator takes longer on a CPU than its two parts (8 to 11 % of a 6-layer BERT).
_SLOW_FUSIONS = ["SkipLayerNormFusion"]

Array = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Prediction:
    """An answer: the most probable label (or choice), its probability, and those of all, in order."""

    label: str
    probability: float
    probabilities: tuple[float, ...]


@dataclass(frozen=True)
class _Loaded:
    """What is in use now; replaced as a whole, so that a swap never shows half of itself."""

    adapter: AdapterFile
    heads: Mapping[str, HeadFile]
    slots: Mapping[str, Vector]


class Bundle:
    """An opened bundle. Make one with `Bundle.open`; predictions may run in several threads."""

    def __init__(
        self, folder: Path, manifest: Manifest, loaded: _Loaded, tokenizer: Tokenizer, threads: int
    ) -> None:
        self.manifest = manifest
        self._folder = folder
        self._loaded = self._exported = loaded
        self._tokenizer = tokenizer
        self._threads = threads
        self._sessions: dict[str, Any] = {}

    @staticmethod
    def open(folder: Path, *, threads: int = 0) -> Bundle:
        """Open a bundle after checking every file in it; models are loaded at their first use.

        `threads` is the number that one prediction may use, 0 for all cores. Raises `BundleError` when
        the bundle is incomplete, damaged or of another version, `ContractError` when its parts do not
        belong together.
        """
        manifest = read_manifest(folder)
        verify_files(folder, manifest)
        adapter = load_adapter(folder / ADAPTER)
        heads = [load_head(folder / task.head) for task in manifest.tasks]
        tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        tokenizer.no_padding()
        tokenizer.enable_truncation(manifest.max_length, direction=manifest.truncation_side)
        return Bundle(folder, manifest, _load(manifest, adapter, heads), tokenizer, threads)

    @property
    def adapter(self) -> AdapterFile:
        """The adapter in use."""
        return self._loaded.adapter

    @property
    def heads(self) -> Mapping[str, HeadFile]:
        """The heads in use by task; they know the kind and the labels of their task."""
        return self._loaded.heads

    def predict(self, texts: Sequence[str], task: str, *, merged: bool = False) -> list[Prediction]:
        """Classify texts.

        The adapter in the slot answers, or with `merged` the one that was folded into the base at export
        (faster; the answers are the same). Raises like `logits`, and `TaskError` for a task of choices.
        """
        loaded = self._loaded
        head = _head(loaded, task, "classification", "choose")
        labels = head.labels or tuple(map(str, range(len(head.bias))))
        return [_prediction(row, labels) for row in self._logits(loaded, texts, task, merged)]

    def choose(self, question: str, choices: Sequence[str], task: str, *, merged: bool = False) -> Prediction:
        """Pick one of several choices; `probabilities` are in their order.

        Raises like `logits`, and `TaskError` when there are no choices or the task is a classification.
        """
        loaded = self._loaded
        _head(loaded, task, "multiple_choice", "predict")
        if not choices:
            raise TaskError(f"question {question!r} has no choices: give two or more")
        scores = self._logits(loaded, choice_texts(question, choices), task, merged)
        return _prediction(scores[:, 0], choices)

    def logits(self, texts: Sequence[str], task: str, *, merged: bool = False) -> npt.NDArray[np.float32]:
        """What the head gives for each text: (texts, outputs), float32.

        Raises `TaskError` for an unknown task or a text without tokens, `BundleError` for `merged` after
        a swap that the merged graph cannot know of.
        """
        return self._logits(self._loaded, texts, task, merged)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids as in training: with special tokens, cut to the bundle's `max_length`, not padded.

        Raises `TaskError` for a text without tokens.
        """
        if isinstance(texts, str):
            raise TaskError(f"text {texts!r} stands alone: give a list of texts")
        ids = [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]
        if empty := [text for text, tokens in zip(texts, ids, strict=True) if not tokens]:
            raise TaskError(f"text {empty[0]!r} has no tokens: leave it out")
        return ids

    def load_adapter_file(self, path: Path) -> None:
        """Use the adapter in this file from the next prediction on; the heads stay.

        Raises `AdapterError` for a file that cannot be read, and like `swap`; the old adapter then stays.
        """
        self.swap(load_adapter(path))

    def swap(self, adapter: AdapterFile, heads: Sequence[HeadFile] = ()) -> None:
        """Use another adapter, with other heads if given (for new tasks, too), from the next prediction on.

        Raises `ContractError`, and changes nothing, when one of them belongs to another base or layout.
        """
        current = self._loaded.heads
        replaced = {head.task for head in heads}
        kept = [head for task, head in current.items() if task not in replaced]
        self._loaded = _load(self.manifest, adapter, [*kept, *heads])

    def _logits(
        self, loaded: _Loaded, texts: Sequence[str], task: str, merged: bool
    ) -> npt.NDArray[np.float32]:
        head = _head(loaded, task)
        session = self._session(self._merged_graph(loaded, task) if merged else UNMERGED)
        slot = {} if merged else {"slot": loaded.slots[task]}
        ids = self.tokenize(texts)
        logits = np.empty((len(ids), len(head.bias)), np.float32)
        # Texts of similar length together: less padding.
        order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            inputs = _pad([ids[row] for row in rows], self.manifest.pad_id)
            logits[rows] = session.run(None, dict(zip(self.manifest.inputs, inputs, strict=True)) | slot)[0]
        return logits

    def _merged_graph(self, loaded: _Loaded, task: str) -> str:
        exported = self._exported
        if loaded.adapter is not exported.adapter or loaded.heads[task] is not exported.heads.get(task):
            raise BundleError(
                f"the merged graph of task {task!r} holds the adapter of the export, not the one swapped in "
                "since: predict with merged=False, or export again"
            )
        return next(entry.merged for entry in self.manifest.tasks if entry.name == task)

    def _session(self, graph: str) -> Any:  # noqa: ANN401
        if graph not in self._sessions:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = self._threads
            options.log_severity_level = 3
            # Waiting threads that spin take the core from those that work.
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            self._sessions[graph] = onnxruntime.InferenceSession(
                str(self._folder / graph),
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=_SLOW_FUSIONS,
            )
        return self._sessions[graph]


def _head(loaded: _Loaded, task: str, kind: str = "", instead: str = "") -> HeadFile:
    head = loaded.heads.get(task)
    if head is None:
        raise TaskError(f"this bundle has no task {task!r}: it has {', '.join(map(repr, loaded.heads))}")
    if kind and head.task_kind != kind:
        raise TaskError(f"task {task!r} is {head.task_kind}, not {kind}: use {instead}()")
    return head


def _load(manifest: Manifest, adapter: AdapterFile, heads: Sequence[HeadFile]) -> _Loaded:
    if adapter.layout.contract != manifest.layout.contract:
        raise ContractError(
            f"the adapter has contract {adapter.layout.contract[:12]}…, this bundle "
            f"{manifest.layout.contract[:12]}…: it was trained on another base, or with other settings"
        )
    by_task = matching_heads(adapter, heads, manifest.hidden_size)
    return _Loaded(adapter, by_task, {task: slot_vector(adapter, head) for task, head in by_task.items()})


def _pad(ids: Sequence[Sequence[int]], pad_id: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Token ids and mask, (texts, longest), padded on the right."""
    lengths = np.array([len(tokens) for tokens in ids])
    mask = np.arange(lengths.max()) < lengths[:, None]
    padded = np.full(mask.shape, pad_id, np.int64)
    padded[mask] = np.concatenate([np.asarray(tokens, np.int64) for tokens in ids])
    return padded, mask.astype(np.int64)


def _prediction(logits: Array, labels: Sequence[str]) -> Prediction:
    shifted = np.exp(logits.astype(np.float64) - logits.max())
    probabilities = shifted / shifted.sum()
    best = int(probabilities.argmax())
    return Prediction(labels[best], float(probabilities[best]), tuple(probabilities.tolist()))
