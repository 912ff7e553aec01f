"""Run the bundle that this file lies in: Python, onnxruntime, numpy and tokenizers are all it needs.

    python run.py "Who wrote Hamlet ?" --task trec
    python run.py "the sky is _" --choice blue --choice green --adapter mine.safetensors

It is also the shortest full account of the format: what is checked, what goes into the graph, and what
comes out. It answers texts; for images and language models there is `fedkron predict`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from tokenizers import Tokenizer

Tensors = dict[str, npt.NDArray[Any]]
Logits = npt.NDArray[np.float32]

DEFAULT = "default"
UNMERGED = "unmerged.onnx"
BATCH = 32
TENSOR_TYPES = {"F32": "<f4", "F16": "<f2", "I8": "|i1", "U8": "|u1"}


class RefusedError(Exception):
    """Something in the bundle, the adapter or the question cannot be used; the message says what."""


@contextmanager
def refusing(what: object) -> Iterator[None]:
    """Damage of any sort is a sentence about `what`, not a traceback."""
    try:
        yield
    except (OSError, LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise RefusedError(f"{what} is missing or damaged ({error!r:.200}): copy it again") from error


def check_format(path: Path, content: dict[str, Any], name: str, version: int) -> None:
    """Raise `RefusedError` for another format or version than the one known here."""
    if (found := (content.get("format"), content.get("version"))) != (name, version):
        raise RefusedError(f"{path} has format and version {found}, known here is {name!r}, {version}")


# ---------------------------------------------------------------- the folder


@dataclass(frozen=True)
class Bundle:
    """A folder, its manifest, and from the manifest the files of adapters and merged graphs by name."""

    folder: Path
    manifest: dict[str, Any]
    adapters: dict[str, str]
    merged: dict[str, str]

    def verified(self, name: str) -> Path:
        """The path of a file, which must be inside the folder and as it was exported."""
        with refusing(f"{self.folder}: {name!r}"):
            path = PureWindowsPath(name)  # it splits at / and \, and knows drives
            if path.anchor or ".." in path.parts or set("\\\0") & set(name):
                raise RefusedError(f"file {name!r} lies outside the bundle")
            if not (self.folder / name).resolve().is_relative_to(self.folder.resolve()):
                raise RefusedError(f"file {name!r} is a link out of the bundle: copy the files themselves")
            with (self.folder / name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != self.manifest["files"][name]:
                    raise RefusedError(
                        f"{self.folder / name} is not what was exported (its SHA-256 differs): copy it again"
                    )
        return self.folder / name


def open_bundle(folder: Path) -> Bundle:
    """A text bundle of the version known here."""
    with refusing(folder / "manifest.json"):
        manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_bytes())
        check_format(folder, manifest, "fedkron-bundle", 2)
        if (kind := manifest["input"]["kind"]) != "text":
            raise RefusedError(f"this bundle's input is {kind}, run.py takes text: use `fedkron predict`")
        adapters = {entry["name"]: entry["file"] for entry in manifest["adapters"]}
        merged = {entry["task"]: entry["file"] for entry in manifest["merged"]}
    return Bundle(folder, manifest, adapters, merged)


# ---------------------------------------------------------------- the adapter


@dataclass(frozen=True)
class Task:
    """A task's kind, labels, and head (1, outputs, hidden + 1) float32: weights, then bias, per output."""

    kind: str
    labels: list[str]
    head: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Adapter:
    """What goes into the graph's slot, with a leading axis of 1, and the tasks by name."""

    name: str
    slot: Tensors
    tasks: dict[str, Task]


def read_safetensors(content: bytes) -> tuple[dict[str, Any], Tensors]:
    """Metadata and tensors: 8 bytes for the length of the JSON, the JSON, then the tensors without gaps."""
    position = start = 8 + int.from_bytes(content[:8], "little")
    header: dict[str, Any] = json.loads(content[8:start].decode())
    metadata: dict[str, Any] = json.loads(header.pop("__metadata__")["fedkron"])
    tensors = {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        dtype, shape = np.dtype(TENSOR_TYPES[entry["dtype"]]), entry["shape"]
        begin, end = (start + offset for offset in entry["data_offsets"])
        # Whatever overlaps, leaves a gap or claims another size does not begin or end where it should.
        if begin != position or end != begin + math.prod(shape) * dtype.itemsize:
            raise ValueError(f"tensor {name!r} has bytes {begin} to {end} of {len(content)}, shape {shape}")
        tensors[name] = np.frombuffer(content[begin:end], dtype).reshape(shape)
        position = end
    if position != len(content):
        raise ValueError(f"it has {len(content)} bytes, its tensors end at {position}")
    return metadata, tensors


def checksum(metadata: dict[str, Any], tensors: Tensors) -> str:
    """SHA-256 of the other metadata as JSON, and of the tensors' bytes in order of their names."""
    others = {key: value for key, value in metadata.items() if key != "checksum"}
    digest = hashlib.sha256(json.dumps(others, sort_keys=True, separators=(",", ":")).encode())
    for name in sorted(tensors):
        digest.update(tensors[name].tobytes())
    return digest.hexdigest()


def read_adapter(path: Path, manifest: dict[str, Any]) -> Adapter:
    """A device adapter, unaltered, and made for this very base and graph."""
    with refusing(path):
        metadata, tensors = read_safetensors(path.read_bytes())
        check_format(path, metadata, "fedkron-device-adapter", 1)
        if checksum(metadata, tensors) != metadata["checksum"]:
            raise RefusedError(f"{path} is damaged or was altered (its checksum differs): copy it again")
        # An adapter of another base may have the same size: it would run, and answer nonsense.
        for key in "contract", "slot_hash":
            if metadata[key] != manifest[key]:
                raise RefusedError(
                    f"{path} has {key} {metadata[key][:12]}…, this bundle {manifest[key][:12]}…: the adapter "
                    "was made for another base, or with other settings"
                )
        if not all(np.isfinite(tensor).all() for tensor in tensors.values()):
            raise RefusedError(f"{path} holds values that are not finite")
        tasks = {}
        for number, task in enumerate(metadata["tasks"]):
            head = tensors.pop(f"head.{number}")
            name, kind, labels, outputs = task["name"], task["kind"], task["labels"], len(head)
            # A choice has one score and no label.
            possible = {"classification": {(0, outputs), (outputs, outputs)}, "multiple_choice": {(0, 1)}}
            fits = head.shape == (outputs, manifest["hidden_size"] + 1) and head.dtype.kind == "f"
            if not fits or (len(labels), outputs) not in possible[kind]:
                raise ValueError(f"task {name!r}: {kind}, labels {labels}, head {head.dtype} {head.shape}")
            tasks[name] = Task(kind, [str(label) for label in labels], head[None].astype(np.float32))
    return Adapter(metadata["adapter"], {name: tensor[None] for name, tensor in tensors.items()}, tasks)


def find_adapter(bundle: Bundle, wanted: str) -> Adapter:
    """The adapter of this name in the bundle, or else in this file."""
    if wanted in bundle.adapters:
        return read_adapter(bundle.verified(bundle.adapters[wanted]), bundle.manifest)
    if not Path(wanted).is_file():
        has = ", ".join(bundle.adapters) or "none"
        raise RefusedError(f"{wanted!r} is no file, and no adapter of this bundle: it has {has}")
    adapter, own = read_adapter(Path(wanted), bundle.manifest), find_adapter(bundle, DEFAULT)
    given, taken = ({n: (t.dtype.name, t.shape) for n, t in a.slot.items()} for a in (adapter, own))
    if given != taken:
        raise RefusedError(f"{wanted} has {given}, this bundle takes {taken}: export the adapter again")
    return adapter


# ---------------------------------------------------------------- the graph


def open_graph(bundle: Bundle, graph: str, threads: int) -> onnxruntime.InferenceSession:
    """A session on a graph, whose weights lie beside it."""
    path = bundle.verified(graph)
    for weights in ("base.bin",) if graph == UNMERGED else ("base.bin", "merged.bin"):
        bundle.verified(weights)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Waiting threads that spin take the core from those that work.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Without it, products of an int8 base saturate on x64 CPUs that lack VNNI.
    options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, ["CPUExecutionProvider"], disabled_optimizers=["SkipLayerNormFusion"]
        )
    except Exception as error:  # ONNX Runtime's have no class in common
        raise RefusedError(
            f"{path} cannot be opened ({error!r:.200}): copy the whole bundle again"
        ) from error
    if session.get_modelmeta().custom_metadata_map.get("fedkron.contract") != bundle.manifest["contract"]:
        raise RefusedError(f"{path} has another contract than the manifest: copy the whole bundle again")
    return session


def run(
    session: onnxruntime.InferenceSession, fed: Tensors, tokens: Sequence[list[int]], text: dict[str, Any]
) -> Logits:
    """Logits (texts, outputs) of token ids; texts of similar length run together, padded on the right."""
    order = sorted(range(len(tokens)), key=lambda index: len(tokens[index]))
    parts = []
    for start in range(0, len(order), BATCH):
        rows = [tokens[index] for index in order[start : start + BATCH]]
        ids = np.full((len(rows), len(rows[-1])), text["pad_id"], np.int64)
        mask = np.zeros_like(ids)
        for row, row_tokens in enumerate(rows):
            ids[row, : len(row_tokens)] = row_tokens
            mask[row, : len(row_tokens)] = 1
        parts.append(session.run(["logits"], fed | dict(zip(text["names"], (ids, mask), strict=True)))[0])
    logits: Logits = np.concatenate(parts)[np.argsort(order)]
    return logits


# ---------------------------------------------------------------- question and answer


def tokenize(bundle: Bundle, groups: list[list[str]]) -> list[list[list[int]]]:
    """Token ids as in training: with special tokens, cut to the bundle's length."""
    tokenizer = Tokenizer.from_file(str(bundle.verified("tokenizer.json")))
    tokenizer.no_padding()
    text = bundle.manifest["input"]
    tokenizer.enable_truncation(text["max_length"], direction=text["truncation_side"])
    tokens = [[encoding.ids for encoding in tokenizer.encode_batch(texts)] for texts in groups]
    if not all(ids for group in tokens for ids in group):
        raise RefusedError("a text has no tokens: leave it out")
    return tokens


def fill_in(question: str, choices: list[str]) -> list[str]:
    """A text per choice, which takes the place of the question's blank `_`, or follows it."""
    pattern = question if "_" in question else f"{question} _"
    return [pattern.replace("_", choice, 1) for choice in choices]


def answer(logits: Logits, labels: Sequence[object]) -> dict[str, Any]:
    """The most probable label, by a softmax in double precision."""
    powers = np.exp(logits.astype(np.float64) - logits.max())
    probabilities = (powers / powers.sum()).tolist()
    best = int(logits.argmax())
    return {"label": str(labels[best]), "probability": probabilities[best], "probabilities": probabilities}


def tasks_asked(adapter: Adapter, name: str | None, kind: str) -> dict[str, Task]:
    """The task of this name, or all, as far as they are of this kind."""
    tasks = {n: task for n, task in adapter.tasks.items() if task.kind == kind and name in (None, n)}
    if not tasks:
        has = ", ".join(f"{n!r} ({task.kind})" for n, task in adapter.tasks.items()) or "none"
        raise RefusedError(
            f"adapter {adapter.name!r} has no {kind} task {name or ''} but {has}: --choice goes with choices"
        )
    return tasks


def graph_of(bundle: Bundle, task: str, adapter: str, merged: bool) -> str:
    """The graph that answers a task."""
    if not merged:
        return UNMERGED
    if adapter != DEFAULT or task not in bundle.merged:
        there = f"adapter {DEFAULT!r}, tasks {', '.join(bundle.merged)}" if bundle.merged else "none"
        raise RefusedError(f"there is no merged graph of adapter {adapter!r}, task {task!r}, but of {there}")
    return bundle.merged[task]


def answers(bundle: Bundle, texts: list[str], options: argparse.Namespace) -> list[dict[str, Any]]:
    """One for each task and text."""
    adapter = find_adapter(bundle, options.adapter)
    tasks = tasks_asked(adapter, options.task, "multiple_choice" if options.choice else "classification")
    graphs = {name: graph_of(bundle, name, options.adapter, options.merged) for name in tasks}
    sessions = {graph: open_graph(bundle, graph, options.threads) for graph in set(graphs.values())}
    groups = tokenize(
        bundle, [fill_in(text, options.choice) for text in texts] if options.choice else [texts]
    )
    found = []
    for name, task in tasks.items():
        session = sessions[graphs[name]]
        fed = {} if options.merged else adapter.slot | {"head": task.head}
        logits = [run(session, fed, tokens, bundle.manifest["input"]) for tokens in groups]
        # A score per choice of each question, or a row of logits per text.
        rows = [scores[:, 0] for scores in logits] if options.choice else logits[0]
        for text, row in zip(texts, rows, strict=True):
            about = {"task": name, "input": text, "adapter": options.adapter}
            found.append(about | answer(row, options.choice or task.labels or range(len(row))))
    return found


def adapter_list(bundle: Bundle) -> list[dict[str, Any]]:
    """The bundle's adapters and their tasks."""
    adapters = {name: find_adapter(bundle, name) for name in bundle.adapters}
    return [
        {
            "adapter": name,
            "tasks": [{"name": n, "kind": t.kind, "labels": t.labels} for n, t in adapter.tasks.items()],
        }
        for name, adapter in adapters.items()
    ]


def adapter_line(found: dict[str, Any]) -> str:
    """An adapter and its tasks, for people."""
    tasks = ", ".join(f"{task['name']} ({task['kind']})" for task in found["tasks"])
    return f"{found['adapter']}: {tasks or 'no tasks'}"


def answer_line(found: dict[str, Any]) -> str:
    """An answer, for people."""
    return f"{found['task']}: {found['label']} ({found['probability']:.3f})  {found['input']}"


def main() -> int:
    """Answer; exit code 0, or 1 and a sentence where something cannot be used."""
    parser = argparse.ArgumentParser(description="Answer with the bundle in this folder.")
    parser.add_argument("text", nargs="*", help="texts or questions (default: lines of standard input)")
    parser.add_argument("--task", help="whose head answers (default: all tasks that fit)")
    parser.add_argument("--choice", action="append", default=[], help="a choice to pick from; give several")
    parser.add_argument("--adapter", default=DEFAULT, help="name in the bundle, or a device adapter file")
    parser.add_argument("--merged", action="store_true", help="use the graph with the adapter folded in")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--list", action="store_true", help="print the bundle's adapters and their tasks")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: all)")
    options = parser.parse_args()
    try:
        bundle = open_bundle(Path(__file__).resolve().parent)
        if options.list:
            found, line = adapter_list(bundle), adapter_line
        else:
            texts = options.text or [line.rstrip("\n") for line in sys.stdin if line.strip()]
            if not texts:
                raise RefusedError("there is no text: give one as an argument, or lines on standard input")
            found, line = answers(bundle, texts, options), answer_line
    except RefusedError as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        print("\n".join(map(line, found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
