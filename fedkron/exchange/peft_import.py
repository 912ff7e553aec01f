"""Read a PEFT checkpoint as an adapter of ours, exactly, for the base that it was trained on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from fedkron.adapters import attach_layout
from fedkron.base import load_base
from fedkron.errors import AdapterError
from fedkron.exchange.files import AdapterFile
from fedkron.exchange.peft_checkpoint import PeftCheckpoint, read_peft
from fedkron.layout import AdapterLayout


@dataclass(frozen=True)
class PeftImport:
    """The adapter, and what of the checkpoint is not in it: layers and tensors outside of the backbone."""

    adapter: AdapterFile
    left_out: tuple[str, ...]


def import_peft(folder: Path, *, base_name: str | None = None, prefix: str | None = None) -> PeftImport:
    """Read a PEFT LoRA or LoKr checkpoint and check that its layers are those of the base.

    `base_name` is an id or path, by default the one that the checkpoint names. Our base is the backbone
    alone, so `prefix` (`model`, `bert`, …) is taken off the paths; None finds it by itself. What lies
    outside of the backbone (a head, a pooler) does not change hidden states, and is left out.

    Raises `AdapterError` when the checkpoint cannot be represented, or does not fit the base; what
    `load_base` raises when that cannot be loaded.
    """
    checkpoint = read_peft(folder)
    name = base_name or checkpoint.base_name
    if not name:
        raise AdapterError(f"{folder} does not name its base: give one with --base")
    base = load_base(name)
    start = _start(checkpoint, base.backbone) if prefix is None else (f"{prefix}." if prefix else "")
    order = {path: n for n, (path, _) in enumerate(base.backbone.named_modules(remove_duplicate=False))}
    inside = sorted(
        (module for module in checkpoint.modules if _is_inside(module.path, start)),
        key=lambda module: order.get(module.path.removeprefix(start), -1),
    )
    if not inside:
        raise AdapterError(
            f"{folder}: no layer's path begins with {start!r}: the first is {checkpoint.modules[0].path!r}"
        )
    if trained := [other for other in checkpoint.others if _is_inside(other, start)]:
        raise AdapterError(
            f"{folder}: {trained[0]!r} was trained in full ({len(trained)} such tensors), which an adapter "
            "of ours cannot hold for a part of the base"
        )
    modules = tuple(replace(module, path=module.path.removeprefix(start)) for module in inside)
    state = {
        new.tensor_name(factor.name): checkpoint.state[old.tensor_name(factor.name)]
        for old, new in zip(inside, modules, strict=True)
        for factor in new.factors
    }
    layout = AdapterLayout(base.fingerprint, modules)
    attach_layout(base.backbone, layout)
    adapter = AdapterFile(state, layout, name, lineage=(f"imported from PEFT {checkpoint.peft_type}",))
    outside = [module.path for module in checkpoint.modules if module not in inside]
    return PeftImport(adapter, (*outside, *checkpoint.others))


def _is_inside(path: str, start: str) -> bool:
    # Our backbones have no pooler (fedkron.base).
    return path.startswith(start) and not path.removeprefix(start).startswith("pooler.")


def _start(checkpoint: PeftCheckpoint, backbone: nn.Module) -> str:
    """The shortest beginning, in whole names, without which paths of layers are paths of the backbone."""
    known = {path for path, _ in backbone.named_modules(remove_duplicate=False)}
    starts = {start for module in checkpoint.modules for start in _starts(module.path)}

    def fits(start: str) -> bool:
        return any(
            m.path.startswith(start) and m.path.removeprefix(start) in known for m in checkpoint.modules
        )

    return next((start for start in sorted(starts, key=lambda s: (s.count("."), s)) if fits(start)), "")


def _starts(path: str) -> Iterable[str]:
    names = path.split(".")
    return ("".join(f"{name}." for name in names[:count]) for count in range(len(names)))
