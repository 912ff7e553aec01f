"""Run a bundle on a CPU with numpy, onnxruntime, tokenizers and safetensors: no torch, no transformers.

`Bundle.open(Path("my-bundle")).predict(["Who wrote Hamlet ?"], "trec")` is all that it takes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from fedkron.edge.device_adapter import DeviceAdapter
from fedkron.edge.heads import TaskHead
from fedkron.edge.language_model import LanguageModelInput
from fedkron.edge.manifest import TOKENIZER, UNMERGED, Input, Manifest, read_manifest, verify_files
from fedkron.edge.session import open_session
from fedkron.edge.slot import HEAD
from fedkron.edge.store import DEFAULT, AdapterStore, slot_feeds
from fedkron.edge.texts import Feeds, TextInput, load_tokenizer, text_batches, tokenize
from fedkron.errors import BundleError, TaskError
from fedkron.exchange import AdapterFile, HeadFile
from fedkron.prompts import choice_texts

Logits = npt.NDArray[np.float32]
Batches = Callable[[Sequence[Any]], Iterator[tuple[list[int], Feeds]]]


@dataclass(frozen=True)
class Prediction:
    """An answer: the most probable label (or choice), its probability, and those of all, in order."""

    label: str
    probability: float
    probabilities: tuple[float, ...]


class Bundle:
    """An opened bundle. Make one with `Bundle.open`; all methods may be called from several threads.

    It holds adapters by name; the one it was exported with is called `default`. Each call names the one that
    answers, or one for each of its inputs. Adapters may be loaded, replaced and dropped meanwhile: a call
    goes on with those that it started with.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, store: AdapterStore, batches: Batches, threads: int
    ) -> None:
        self.manifest = manifest
        self._folder = folder
        self._store = store
        self._batches = batches
        self._threads = threads
        self._sessions: dict[str, Any] = {}
        self._opening = Lock()
        self._exported = store.snapshot().get(DEFAULT)

    @staticmethod
    def open(folder: Path, *, threads: int = 0) -> Bundle:
        """Open a bundle after checking every file in it; models are loaded at their first use.

        `threads` is the number that one call may use, 0 for all cores. Raises `BundleError` when the
        bundle is incomplete, damaged or of another version, `ContractError` when its parts do not belong
        together.
        """
        manifest = read_manifest(folder)
        verify_files(folder, manifest)
        store = AdapterStore(manifest.slot, manifest.hidden_size)
        for entry in manifest.adapters:
            store.load(folder / entry.file, entry.name)
        return Bundle(folder, manifest, store, _reader(folder, manifest.input), threads)

    @property
    def adapters(self) -> Mapping[str, DeviceAdapter]:
        """The adapters that are loaded at this moment, by name."""
        return self._store.snapshot()

    def tasks(self, adapter: str = DEFAULT) -> Mapping[str, TaskHead]:
        """Tasks of an adapter; raises `TaskError` when it is not loaded."""
        return self._store[adapter].tasks

    def load(self, path: Path, name: str = "") -> str:
        """Load an adapter from a file, in place of the one of this name if there is one.

        Returns the name, by default that of the file without its ending. A device adapter brings its heads,
        an adapter file of training gets those of the default adapter. The new one answers from the next
        call on. Raises `AdapterError` for a file that is missing, damaged or altered, `ContractError` for one
        that was made for another base or slot; nothing changes then.
        """
        return self._store.load(path, name)

    def add(self, name: str, adapter: AdapterFile, heads: Sequence[HeadFile] = ()) -> None:
        """Load an adapter from memory; tasks without a head among `heads` get the default adapter's.

        Raises like `load`.
        """
        self._store.add(name, adapter, heads)

    def unload(self, name: str) -> None:
        """Drop an adapter; raises `TaskError` when it is not loaded."""
        self._store.drop(name)

    def predict(
        self,
        inputs: Sequence[Any],
        task: str | Sequence[str],
        *,
        adapter: str | Sequence[str] = DEFAULT,
        merged: bool = False,
    ) -> list[Prediction]:
        """Classify texts (or images, for a base of images).

        `task` and `adapter` are those of all inputs, or one for each: different adapters run in one batch.
        The adapter in the slot answers, or with `merged` the one that was folded into the base at export
        (faster; the answers are the same). Raises `TaskError` for a task or adapter that is not there, a text
        without tokens and a task of choices; `BundleError` for `merged` where there is no such graph, or
        after the default adapter was replaced.
        """
        chosen = self._chosen(inputs, task, adapter)
        for _, head in chosen:
            _check_kind(head, "classification", "choose")
        rows = self._logits(inputs, chosen, merged)
        return [_prediction(row, _labels(head)) for row, (_, head) in zip(rows, chosen, strict=True)]

    def choose(
        self,
        question: str,
        choices: Sequence[str],
        task: str,
        *,
        adapter: str = DEFAULT,
        merged: bool = False,
    ) -> Prediction:
        """Pick one of several choices; `probabilities` are in their order.

        Raises like `predict`, and `TaskError` when there are no choices or the task is a classification.
        """
        if not choices:
            raise TaskError(f"question {question!r} has no choices: give two or more")
        texts = choice_texts(question, choices)
        chosen = self._chosen(texts, task, adapter)
        _check_kind(chosen[0][1], "multiple_choice", "predict")
        scores = self._logits(texts, chosen, merged)
        return _prediction(np.concatenate(scores), choices)

    def logits(
        self,
        inputs: Sequence[Any],
        task: str,
        *,
        adapter: str | Sequence[str] = DEFAULT,
        merged: bool = False,
    ) -> Logits:
        """What the head of one task gives for each input: (inputs, outputs), float32. Raises like
        `predict`.
        """
        chosen = self._chosen(inputs, task, adapter)
        if len({len(head.weights) for _, head in chosen}) > 1:
            raise TaskError(
                f"the adapters' heads for task {task!r} differ in their number of labels: predict()"
            )
        rows = self._logits(inputs, chosen, merged)
        return np.stack(rows) if rows else np.empty((0, 0), np.float32)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids as in training: with special tokens, cut to the bundle's `max_length`, not padded.

        Raises `TaskError` for a text without tokens, and when the bundle does not read texts.
        """
        if not isinstance(self.manifest.input, TextInput):
            raise TaskError("this bundle reads images: it has no tokenizer")
        return tokenize(load_tokenizer(self._folder / TOKENIZER, self.manifest.input), texts)

    def _chosen(
        self, inputs: Sequence[Any], task: str | Sequence[str], adapter: str | Sequence[str]
    ) -> list[tuple[DeviceAdapter, TaskHead]]:
        """Adapter and head of each input: looked up once, so that no change shows within a call."""
        if isinstance(inputs, str):
            raise TaskError(f"text {inputs!r} stands alone: give a list of texts")
        tasks = _for_each(task, inputs, "tasks")
        held = {name: self._store[name] for name in dict.fromkeys(_for_each(adapter, inputs, "adapters"))}
        names = _for_each(adapter, inputs, "adapters")
        return [(held[name], _head(held[name], task)) for name, task in zip(names, tasks, strict=True)]

    def _logits(
        self, inputs: Sequence[Any], chosen: Sequence[tuple[DeviceAdapter, TaskHead]], merged: bool
    ) -> list[npt.NDArray[np.float32]]:
        if merged:
            return self._merged_logits(inputs, chosen)
        logits: list[npt.NDArray[np.float32]] = [np.empty(0, np.float32)] * len(inputs)
        session = self._session(UNMERGED)
        for rows, feeds in self._batches(inputs):
            for part in self._together([chosen[row][0] for row in rows]):
                adapters = [chosen[rows[i]][0] for i in part]
                heads = [chosen[rows[i]][1] for i in part]
                inputs_of_part = {name: array[part] for name, array in feeds.items()}
                fed = inputs_of_part | slot_feeds(adapters) | {HEAD: head_feed(heads)}
                for i, head, output in zip(part, heads, session.run(None, fed)[0], strict=True):
                    logits[rows[i]] = output[: len(head.weights)]
        return logits

    def _together(self, adapters: Sequence[DeviceAdapter]) -> list[list[int]]:
        """Which rows of a batch may run together: all, unless the graph takes one adapter at a time."""
        if self.manifest.slot.per_row:
            return [list(range(len(adapters)))]
        parts: dict[int, list[int]] = defaultdict(list)
        for row, adapter in enumerate(adapters):
            parts[id(adapter)].append(row)
        return list(parts.values())

    def _merged_logits(
        self, inputs: Sequence[Any], chosen: Sequence[tuple[DeviceAdapter, TaskHead]]
    ) -> list[npt.NDArray[np.float32]]:
        logits: list[npt.NDArray[np.float32]] = [np.empty(0, np.float32)] * len(inputs)
        graphs = {head.name: self._merged_graph(adapter, head.name) for adapter, head in chosen}
        for task, graph in graphs.items():
            mine = [index for index, (_, head) in enumerate(chosen) if head.name == task]
            for rows, feeds in self._batches([inputs[index] for index in mine]):
                outputs = self._session(graph).run(None, feeds)[0]
                for row, output in zip(rows, outputs, strict=True):
                    logits[mine[row]] = output
        return logits

    def _merged_graph(self, adapter: DeviceAdapter, task: str) -> str:
        if task not in self.manifest.merged:
            raise BundleError(
                f"this bundle has no merged graph of task {task!r}: predict with merged=False, or export it"
            )
        if adapter is not self._exported:
            raise BundleError(
                f"the merged graph of task {task!r} holds the adapter of the export, not adapter "
                f"{adapter.name!r} as it is now: predict with merged=False, or export again"
            )
        return self.manifest.merged[task]

    def _session(self, graph: str) -> Any:  # noqa: ANN401
        with self._opening:
            if graph not in self._sessions:
                self._sessions[graph] = open_session(self._folder / graph, self._threads)
            return self._sessions[graph]


def _reader(folder: Path, settings: Input) -> Batches:
    """What turns inputs into batches for the graph."""
    match settings:
        case TextInput():
            return partial(text_batches, load_tokenizer(folder / TOKENIZER, settings), settings)
        case LanguageModelInput():
            raise BundleError(f"{folder} generates text: open it with fedkron.edge.language_runtime")
        case images:
            from fedkron.edge.images import image_batches

            return partial(image_batches, images)


def head_feed(heads: Sequence[TaskHead]) -> npt.NDArray[np.float32]:
    """The graph's input for one head for all rows, or for a head per row: (rows, outputs, hidden + 1)."""
    if all(head is heads[0] for head in heads):
        return heads[0].weights.astype(np.float32)[None]
    outputs = max(len(head.weights) for head in heads)
    feed = np.zeros((len(heads), outputs, heads[0].weights.shape[1]), np.float32)
    for row, head in zip(feed, heads, strict=True):
        row[: len(head.weights)] = head.weights
    return feed


def _for_each(names: str | Sequence[str], inputs: Sequence[Any], what: str) -> Sequence[str]:
    if isinstance(names, str):
        return [names] * len(inputs)
    if len(names) != len(inputs):
        raise TaskError(f"there are {len(names)} {what} for {len(inputs)} inputs: give one, or one for each")
    return names


def _head(adapter: DeviceAdapter, task: str) -> TaskHead:
    if (head := adapter.tasks.get(task)) is None:
        known = ", ".join(map(repr, adapter.tasks)) or "none"
        raise TaskError(f"adapter {adapter.name!r} has no task {task!r}: it has {known}")
    return head


def _check_kind(head: TaskHead, kind: str, instead: str) -> None:
    if head.kind != kind:
        raise TaskError(f"task {head.name!r} is {head.kind}, not {kind}: use {instead}()")


def _labels(head: TaskHead) -> Sequence[str]:
    return head.labels or tuple(map(str, range(len(head.weights))))


def _prediction(logits: npt.NDArray[np.float32], labels: Sequence[str]) -> Prediction:
    shifted = np.exp(logits.astype(np.float64) - logits.max())
    probabilities = shifted / shifted.sum()
    best = int(probabilities.argmax())
    return Prediction(labels[best], float(probabilities[best]), tuple(probabilities.tolist()))
