"""Write a bundle of a causal language model: it continues texts, with an adapter in its slot or without."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast

from fedkron.base import Base
from fedkron.edge.bundle import check_adapter
from fedkron.edge.bundle_adapters import hashes, write_adapter, write_manifest
from fedkron.edge.bundle_folder import (
    check_base_form,
    check_new,
    in_form,
    tokenizer_json,
    unfinished_bundle,
    write_tokenizer,
    write_unmerged,
)
from fedkron.edge.decoder import export_decoder, language_model_input
from fedkron.edge.device_adapter import device_adapter
from fedkron.edge.fold import fold_adapter
from fedkron.edge.graph import copy_model, move_weights, save_model, set_properties
from fedkron.edge.manifest import BASE_WEIGHTS, GENERATION, MERGED_WEIGHTS, Manifest
from fedkron.edge.slot import check_encoding
from fedkron.edge.slot_graph import insert_slot
from fedkron.edge.store import DEFAULT
from fedkron.exchange import AdapterFile

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MERGED = "merged.onnx"


def write_language_bundle(
    folder: Path,
    base: Base,
    adapter: AdapterFile,
    *,
    max_length: int,
    encoding: str = "fp32",
    base_form: str = "fp32",
    merged: bool = True,
    report: Callable[[str], None],
) -> Path:
    """Export a language model (`fedkron.base.load_language_model`) with an adapter, and return the folder.

    A text and its continuation may have `max_length` tokens together. The rest is as in
    `fedkron.edge.bundle.write_bundle`, which this raises like, and `BundleError` for a model that
    `export_decoder` does not take.
    """
    check_new(folder)
    check_encoding(encoding)
    check_base_form(base_form)
    check_adapter(base, adapter)
    tokenizer = tokenizer_json(base)
    model = cast("PreTrainedModel", base.backbone)
    settings = language_model_input(model, base.tokenizer, max_length)

    with unfinished_bundle(folder) as unfinished:
        write_tokenizer(unfinished, tokenizer)
        report(f"Exporting language model {base.name} to ONNX ...")
        decoder = export_decoder(model)
        # From here on the weights are in a file: graphs are small, and share what they have in common.
        move_weights(decoder, unfinished / BASE_WEIGHTS)
        if merged:
            report("Merging the adapter ...")
            folded = copy_model(decoder)
            fold_adapter(folded, adapter.layout, adapter.state, unfinished)
            folded = in_form(folded, unfinished, base_form)
            set_properties(folded, contract=adapter.layout.contract, task=GENERATION)
            move_weights(folded, unfinished / MERGED_WEIGHTS)
            save_model(folded, unfinished / MERGED)
        report("Writing the graph with a slot for adapters ...")
        slot = insert_slot(decoder, adapter.layout, encoding)
        set_properties(decoder, contract=adapter.layout.contract, slot=slot.hash)
        write_unmerged(unfinished, decoder, base_form)
        packed = device_adapter(DEFAULT, adapter, (), slot, base.hidden_size)
        manifest = Manifest(
            base_name=base.name,
            base_form=base_form,
            slot=slot,
            hidden_size=base.hidden_size,
            input=settings,
            merged={GENERATION: MERGED} if merged else {},
            adapters=(write_adapter(unfinished, packed),),
            files=hashes(unfinished),
        )
        write_manifest(unfinished, manifest)
    return folder
