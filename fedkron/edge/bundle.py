"""Write a bundle: everything that a device needs to run adapters' tasks on one base, in one folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedkron.adapters import adapted_layers
from fedkron.base import Base
from fedkron.edge.bundle_adapters import check_file_names, file_stem, hashes, write_adapter, write_manifest
from fedkron.edge.bundle_folder import (
    check_base_form,
    check_max_length,
    check_new,
    in_form,
    tokenizer_json,
    unfinished_bundle,
    write_tokenizer,
    write_unmerged,
)
from fedkron.edge.device_adapter import device_adapter
from fedkron.edge.features import export_features, export_image_features
from fedkron.edge.fold import attach_head, fold_adapter
from fedkron.edge.graph import copy_model, move_weights, save_model, set_properties
from fedkron.edge.heads import check_exportable, matching_heads
from fedkron.edge.manifest import BASE_WEIGHTS, MERGED_WEIGHTS, Input, Manifest
from fedkron.edge.slot import check_encoding, layer_sizes
from fedkron.edge.slot_graph import insert_head, insert_slot
from fedkron.edge.store import DEFAULT
from fedkron.edge.texts import TextInput
from fedkron.errors import AdapterError, BundleError, ContractError
from fedkron.exchange import AdapterFile, HeadFile
from fedkron.layout import flatten

if TYPE_CHECKING:  # fedkron.edge.graph imports onnx, and says what to install where it is missing
    from onnx import ModelProto


def write_bundle(
    folder: Path,
    base: Base,
    adapter: AdapterFile,
    heads: Sequence[HeadFile],
    *,
    max_length: int = 64,
    encoding: str = "fp32",
    base_form: str = "fp32",
    merged: bool = True,
    report: Callable[[str], None],
) -> Path:
    """Export a base with an adapter and its tasks' heads to `folder`, and return the folder.

    The bundle (specified in docs/formats.md) has one graph with a slot, in which adapters are written as
    `encoding` says (`fedkron.edge.slot_encoding`), the adapter with its heads in that form, and with `merged`
    each task as an ordinary ONNX model with the adapter folded in. `base_form` says how the base's weights
    are stored (`fedkron.edge.quantize`). Texts will be cut to `max_length` tokens: give what the adapter
    was trained with; a base of images has no use for it. `report` receives a sentence per step. `folder`
    appears when it is complete, or not at all.

    Raises, before anything is written: `BundleError` when `folder` exists, there is no head, two heads
    are for one task, the tokenizer or image processor does not run on a device or the adapter is of a kind
    that does not run in a graph; `ContractError` when base, adapter and heads do not belong together;
    `AdapterError` when the state does not fit its layout or the base has an adapter attached; `ConfigError`
    for a `max_length` that the base cannot take and for unknown forms. `BundleError` also when a layer of the
    adapter is not in the exported graph.
    """
    check_new(folder)
    check_encoding(encoding)
    check_base_form(base_form)
    check_adapter(base, adapter)
    checked = _check_heads(base, adapter, heads)
    settings, tokenizer = _input_settings(base, max_length)

    with unfinished_bundle(folder) as unfinished:
        if tokenizer:
            write_tokenizer(unfinished, tokenizer)
        report(f"Exporting base {base.name} to ONNX ...")
        features = (export_image_features if base.image_processor else export_features)(base.backbone)
        # From here on the weights are in a file: graphs are small, and share what they have in common.
        move_weights(features, unfinished / BASE_WEIGHTS)
        graphs: dict[str, str] = {}
        if merged:
            report(f"Merging the adapter (tasks: {', '.join(head.task for head in checked)}) ...")
            graphs = _write_merged(unfinished, features, adapter, checked, base_form)
        report("Writing the graph with a slot for adapters ...")
        unmerged = copy_model(features)
        slot = insert_slot(unmerged, adapter.layout, encoding)
        insert_head(unmerged, base.hidden_size)
        set_properties(unmerged, contract=adapter.layout.contract, slot=slot.hash)
        write_unmerged(unfinished, unmerged, base_form)
        packed = device_adapter(DEFAULT, adapter, checked, slot, base.hidden_size)
        entry = write_adapter(unfinished, packed)
        manifest = Manifest(
            base_name=base.name,
            base_form=base_form,
            slot=slot,
            hidden_size=base.hidden_size,
            input=settings,
            merged=graphs,
            adapters=(entry,),
            files=hashes(unfinished),
        )
        write_manifest(unfinished, manifest)
    return folder


def check_adapter(base: Base, adapter: AdapterFile) -> None:
    """Raise `ContractError`, `BundleError` or `AdapterError` unless the adapter runs on this base in a
    graph.
    """
    layout = adapter.layout
    if base.fingerprint != layout.base:
        raise ContractError(
            f"the adapter was trained on base {adapter.base_name!r} with fingerprint {layout.base[:12]}…, "
            f"base {base.name!r} has {base.fingerprint[:12]}…: use the same weights"
        )
    if any(True for _ in adapted_layers(base.backbone)):
        raise AdapterError("this base has an adapter attached: load it again, or detach the adapter")
    check_exportable(layout)
    for module in layout.modules:
        layer_sizes(module)
    flatten(adapter.state, layout)


def _check_heads(base: Base, adapter: AdapterFile, heads: Sequence[HeadFile]) -> list[HeadFile]:
    if not heads:
        raise BundleError("there is no head: an adapter without one answers nothing, give one per task")
    tasks = matching_heads(adapter, heads, base.hidden_size)
    check_file_names(list(tasks))
    return list(tasks.values())


def _input_settings(base: Base, max_length: int) -> tuple[Input, str]:
    """What the manifest says about inputs, and the content of `tokenizer.json`."""
    if base.image_processor is not None:
        from fedkron.edge.images import ImageInput

        return ImageInput.of_processor(base.image_processor), ""
    tokenizer = tokenizer_json(base)
    check_max_length(base, max_length)
    pad_id, side = int(base.tokenizer.pad_token_id), str(base.tokenizer.truncation_side)
    return TextInput(max_length, pad_id, side), tokenizer


def _write_merged(
    folder: Path, features: ModelProto, adapter: AdapterFile, heads: Sequence[HeadFile], base_form: str
) -> dict[str, str]:
    """A graph per task; the weights that the unmerged graph does not have are in one file."""
    folded = copy_model(features)
    fold_adapter(folded, adapter.layout, adapter.state, folder)
    folded = in_form(folded, folder, base_form)
    move_weights(folded, folder / MERGED_WEIGHTS)
    graphs = {head.task: f"merged-{file_stem(head.task)}.onnx" for head in heads}
    for head in heads:
        model = copy_model(folded)
        attach_head(model, head.weight, head.bias)
        set_properties(model, contract=adapter.layout.contract, task=head.task)
        save_model(model, folder / graphs[head.task])
    return graphs
