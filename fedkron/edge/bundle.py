"""Write a bundle: everything that a device needs to run one adapter's tasks, in one folder."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedkron.adapters import adapted_layers
from fedkron.base import Base
from fedkron.edge.features import export_features
from fedkron.edge.graph import (
    INPUTS,
    attach_head,
    copy_model,
    fold_adapter,
    insert_slot,
    save_model,
    set_properties,
)
from fedkron.edge.manifest import (
    ADAPTER,
    MANIFEST,
    MERGED_WEIGHTS,
    TOKENIZER,
    UNMERGED,
    UNMERGED_WEIGHTS,
    Manifest,
    TaskEntry,
    sha256,
)
from fedkron.edge.slot import check_exportable, matching_heads
from fedkron.errors import AdapterError, BundleError, ConfigError, ContractError
from fedkron.exchange import AdapterFile, HeadFile, save_adapter, save_head
from fedkron.layout import AdapterLayout, flatten

if TYPE_CHECKING:  # fedkron.edge.graph imports onnx, and says what to install where it is missing
    from onnx import ModelProto


def write_bundle(
    folder: Path,
    base: Base,
    adapter: AdapterFile,
    heads: Sequence[HeadFile],
    *,
    max_length: int = 64,
    report: Callable[[str], None],
) -> Path:
    """Export a base with an adapter and its tasks' heads to `folder`, and return the folder.

    The bundle has each task merged (an ordinary ONNX model per task, the weights in one file), one graph
    with a slot for all tasks, and the adapter and heads as files (specified in docs/formats.md). Texts
    will be cut to `max_length` tokens: give what the adapter was trained with. `report` receives a
    sentence per step. `folder` appears when it is complete, or not at all.

    Raises, before anything is written: `BundleError` when `folder` exists, there is no head, two heads
    are for one task, or the tokenizer cannot be stored; `ContractError` when base, adapter and heads do
    not belong together; `AdapterError` when the state does not fit its layout or the base has an adapter
    attached; `ConfigError` for a `max_length` that the base cannot take. `BundleError` also when a layer
    of the adapter is not in the exported graph.
    """
    if folder.exists():
        raise BundleError(f"{folder} exists already: choose another folder, or delete it first")
    checked = _check(base, adapter, heads)
    tokenizer = _tokenizer_json(base)
    _check_max_length(base, max_length)

    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        (unfinished / TOKENIZER).write_text(tokenizer, encoding="utf-8")
        save_adapter(unfinished / ADAPTER, adapter)
        tasks = {_write_head(unfinished, head): head for head in checked}
        report(f"Exporting base {base.name} to ONNX ...")
        features = export_features(base.backbone)
        report("Writing the graph with a slot for adapters ...")
        _write_unmerged(unfinished, features, adapter.layout, base.hidden_size)
        report(f"Merging the adapter (tasks: {', '.join(head.task for head in checked)}) ...")
        _write_merged(unfinished, features, adapter, tasks)
        manifest = Manifest(
            base_name=base.name,
            layout=adapter.layout,
            hidden_size=base.hidden_size,
            max_length=max_length,
            pad_id=int(base.tokenizer.pad_token_id),
            truncation_side=str(base.tokenizer.truncation_side),
            inputs=INPUTS,
            tasks=tuple(tasks),
            files=_hashes(unfinished),
        )
        (unfinished / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        # mkdtemp makes the folder private to its owner; give it what mkdir() would have given.
        unfinished.chmod(0o755)
        unfinished.rename(folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return folder


def _check(base: Base, adapter: AdapterFile, heads: Sequence[HeadFile]) -> list[HeadFile]:
    layout = adapter.layout
    if base.fingerprint != layout.base:
        raise ContractError(
            f"the adapter was trained on base {adapter.base_name!r} with fingerprint {layout.base[:12]}…, "
            f"base {base.name!r} has {base.fingerprint[:12]}…: use the same weights"
        )
    if any(True for _ in adapted_layers(base.backbone)):
        raise AdapterError("this base has an adapter attached: load it again, or detach the adapter")
    check_exportable(layout)
    flatten(adapter.state, layout)
    if not heads:
        raise BundleError("there is no head: an adapter without one answers nothing, give one per task")
    tasks = matching_heads(adapter, heads, base.hidden_size)
    if len({_file_stem(task) for task in tasks}) < len(tasks):
        raise BundleError(f"tasks {', '.join(map(repr, tasks))} would share a file name: rename one")
    return list(tasks.values())


def _tokenizer_json(base: Base) -> str:
    backend = getattr(base.tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise BundleError(
            f"the tokenizer of base {base.name!r} ({type(base.tokenizer).__name__}) is not backed by the "
            "tokenizers library and has no tokenizer.json: a device could not run it"
        )
    if base.tokenizer.pad_token_id is None:
        raise BundleError(f"the tokenizer of base {base.name!r} has no padding token: set its pad_token")
    return str(backend.to_str())


def _check_max_length(base: Base, max_length: int) -> None:
    limits = (base.tokenizer.model_max_length, getattr(base.backbone.config, "max_position_embeddings", None))
    limit = min(int(limit) for limit in limits if limit)
    if not 1 <= max_length <= limit:
        raise ConfigError(f"max_length is {max_length}: base {base.name!r} takes 1 to {limit} tokens")


def _file_stem(task: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", task)


def _write_head(folder: Path, head: HeadFile) -> TaskEntry:
    stem = _file_stem(head.task)
    entry = TaskEntry(
        head.task, head.task_kind, head.labels, f"heads/{stem}.safetensors", f"merged-{stem}.onnx"
    )
    save_head(folder / entry.head, head)
    return entry


def _write_unmerged(folder: Path, features: ModelProto, layout: AdapterLayout, hidden: int) -> None:
    unmerged = copy_model(features)
    insert_slot(unmerged, layout, hidden)
    set_properties(unmerged, contract=layout.contract)
    save_model(unmerged, folder / UNMERGED, weights=UNMERGED_WEIGHTS)


def _write_merged(
    folder: Path, features: ModelProto, adapter: AdapterFile, tasks: Mapping[TaskEntry, HeadFile]
) -> None:
    fold_adapter(features, adapter.layout, adapter.state)
    # Saving moves the weights out of the model: what is left of it is small, and shared by all tasks.
    save_model(features, folder / "features.onnx", weights=MERGED_WEIGHTS)
    (folder / "features.onnx").unlink()
    for entry, head in tasks.items():
        merged = copy_model(features)
        attach_head(merged, head.weight, head.bias)
        set_properties(merged, contract=adapter.layout.contract, task=entry.name)
        save_model(merged, folder / entry.merged)


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256(path) for path in files}
