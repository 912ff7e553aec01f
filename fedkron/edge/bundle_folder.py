"""What all bundles have in common: a folder that appears complete or not at all, graphs, adapters, hashes."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files as package_files
from pathlib import Path
from typing import TYPE_CHECKING

from fedkron.edge.graph import fetch_weights, move_weights, save_model
from fedkron.edge.manifest import BASE_WEIGHTS, RUN, TOKENIZER, UNMERGED
from fedkron.edge.quantize import BASE_FORMS, quantize
from fedkron.errors import BundleError, ConfigError

if TYPE_CHECKING:  # fedkron.edge.graph imports onnx, and says what to install where it is missing
    from onnx import ModelProto

    from fedkron.base import Base


@contextmanager
def unfinished_bundle(folder: Path) -> Iterator[Path]:
    """A folder to write a bundle to, which becomes `folder` at the end, or vanishes on an error.

    Raises `BundleError` when `folder` exists.
    """
    check_new(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        (unfinished / RUN).write_bytes(package_files("fedkron.edge").joinpath("standalone.py").read_bytes())
        yield unfinished
        # mkdtemp makes the folder private to its owner; give it what mkdir() would have given.
        unfinished.chmod(0o755)
        unfinished.rename(folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def check_new(folder: Path) -> None:
    """Raise `BundleError` when there is something already."""
    if folder.exists():
        raise BundleError(f"{folder} exists already: choose another folder, or delete it first")


def check_base_form(base_form: str) -> None:
    """Raise `ConfigError` unless a base can be stored in this form."""
    if base_form not in BASE_FORMS:
        raise ConfigError(f"base form {base_form!r} is not known: choose {', '.join(BASE_FORMS)}")


def tokenizer_json(base: Base) -> str:
    """The base's tokenizer for the tokenizers library; raises `BundleError` when it is of another sort."""
    backend = getattr(base.tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise BundleError(
            f"the tokenizer of base {base.name!r} ({type(base.tokenizer).__name__}) is not backed by the "
            "tokenizers library and has no tokenizer.json: a device could not run it"
        )
    if base.tokenizer.pad_token_id is None:
        raise BundleError(f"the tokenizer of base {base.name!r} has no padding token: set its pad_token")
    return str(backend.to_str())


def check_max_length(base: Base, max_length: int) -> None:
    """Raise `ConfigError` unless the base takes so many tokens."""
    limits = (base.tokenizer.model_max_length, getattr(base.backbone.config, "max_position_embeddings", None))
    limit = min(int(limit) for limit in limits if limit)
    if not 1 <= max_length <= limit:
        raise ConfigError(f"max_length is {max_length}: base {base.name!r} takes 1 to {limit} tokens")


def write_tokenizer(folder: Path, content: str) -> None:
    """Write `tokenizer.json`."""
    (folder / TOKENIZER).write_text(content, encoding="utf-8")


def write_unmerged(folder: Path, model: ModelProto, base_form: str) -> None:
    """Write the graph with a slot, whose weights lie in the bundle's file of weights, in this form."""
    if base_form != "fp32":
        model = in_form(model, folder, base_form)
        (folder / BASE_WEIGHTS).unlink()
        move_weights(model, folder / BASE_WEIGHTS)
    save_model(model, folder / UNMERGED)


def in_form(model: ModelProto, folder: Path, base_form: str) -> ModelProto:
    """The model with its base's weights in this form; those that change are in the model."""
    if base_form == "fp32":
        return model
    fetch_weights(model, folder)
    return quantize(model, base_form)
