"""`fedkron convert`: adapters from and to PEFT, and from one kind to another."""

from __future__ import annotations

import argparse
import json
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedkron.errors import ConfigError
from fedkron.exchange import AdapterFile, check_complete, is_peft_checkpoint, load_adapter, save_adapter
from fedkron.rundir import ADAPTER

if TYPE_CHECKING:
    from fedkron.adapters import AdapterSpec
    from fedkron.exchange.conversion import LayerError

OURS, PEFT = "fedkron", "peft"
LORA, KRON_LORA = "lora", "kron_lora"


@dataclass(frozen=True)
class Conversion:
    """What was written where. `errors` are those of an approximation, None for an exact conversion."""

    output: Path
    adapter: AdapterFile
    errors: Sequence[LayerError] | None
    peft_rank: int | None
    left_out: tuple[str, ...]


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "convert",
        help="adapters from and to PEFT, and from kind to kind",
        description="Convert an adapter: ours to a PEFT LoRA checkpoint (exact), PEFT LoRA and LoKr to ours "
        "(exact), and any kind to lora (exact) or kron_lora (the nearest one; prints how near).",
    )
    parser.add_argument("source", type=Path, help="run folder, adapter file, or PEFT checkpoint (a folder)")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help="file to write; with --to peft a folder"
    )
    parser.add_argument("--to", choices=(OURS, PEFT), default=OURS, help="format to write (default: fedkron)")
    parser.add_argument("--kind", choices=(LORA, KRON_LORA), help="kind of all layers (default: as they are)")
    parser.add_argument("--rank", type=int, help="r, for --kind kron_lora (default: 8)")
    parser.add_argument("--d-a1", type=int, help="columns of A, for --kind kron_lora (default: 2)")
    parser.add_argument(
        "--d-a2",
        type=int,
        help="rows of A, for --kind kron_lora (default: power of two nearest to hidden/200)",
    )
    parser.add_argument("--base", help="Hub id or path of the base, if it is not what the source names")
    parser.add_argument(
        "--prefix",
        help="path of our base within the model of PEFT, such as model or bert: put before each path, or "
        "taken off (default: none put, any that fits taken off)",
    )
    parser.add_argument(
        "--task-type", help="PEFT's task type, such as CAUSAL_LM (default: none with --prefix)"
    )
    parser.add_argument("--json", action="store_true", help="print facts as JSON")
    parser.set_defaults(command=convert)


def convert(options: argparse.Namespace) -> int:
    """Convert and print what came out, how exact it is, and what was left out."""
    _check(options)
    adapter, left_out = _read(options)
    adapter, errors = _to_kind(adapter, options)
    rank = None
    if options.to == PEFT:
        rank, dropped = _write_peft(adapter, options)
        left_out += dropped
    else:
        save_adapter(options.output, adapter)
    conversion = Conversion(options.output, adapter, errors, rank, left_out)
    if options.json:
        print(json.dumps(facts(conversion), indent=1))
    else:
        _show(conversion)
    return 0


def facts(conversion: Conversion) -> dict[str, Any]:
    """What was written, for programs; `relative_error` is None for an exact conversion."""
    layout = conversion.adapter.layout
    return {
        "output": str(conversion.output),
        "base": conversion.adapter.base_name,
        "layers": len(layout.modules),
        "kinds": dict(Counter(module.kind for module in layout.modules)),
        "peft_rank": conversion.peft_rank,
        "relative_error": None if conversion.errors is None else _relative(conversion.errors),
        "left_out": list(conversion.left_out),
    }


def _check(options: argparse.Namespace) -> None:
    sizes = (("--rank", options.rank), ("--d-a1", options.d_a1), ("--d-a2", options.d_a2))
    if options.kind != KRON_LORA and (given := [name for name, value in sizes if value is not None]):
        raise ConfigError(f"{given[0]} is for --kind {KRON_LORA}")
    if options.to != PEFT and options.task_type is not None:
        raise ConfigError(f"--task-type is for --to {PEFT}")
    if options.to != PEFT and options.prefix is not None and not is_peft_checkpoint(options.source):
        raise ConfigError(
            f"--prefix is for PEFT checkpoints: {options.source} is none, and --to {PEFT} is not given"
        )


def _read(options: argparse.Namespace) -> tuple[AdapterFile, tuple[str, ...]]:
    source: Path = options.source
    if not is_peft_checkpoint(source):
        adapter = load_adapter(source / ADAPTER if source.is_dir() else source)
        check_complete(adapter)
        return replace(adapter, base_name=options.base or adapter.base_name), ()
    from fedkron.exchange.peft_import import import_peft

    found = import_peft(source, base_name=options.base, prefix=options.prefix)
    return found.adapter, found.left_out


def _to_kind(
    adapter: AdapterFile, options: argparse.Namespace
) -> tuple[AdapterFile, Sequence[LayerError] | None]:
    from fedkron.exchange.conversion import as_kron_lora, as_lora

    match options.kind:
        case "lora":
            return as_lora(adapter), None
        case "kron_lora":
            return as_kron_lora(adapter, _spec(adapter, options))
        case _:
            return adapter, None


def _spec(adapter: AdapterFile, options: argparse.Namespace) -> AdapterSpec:
    from fedkron.adapters import AdapterSpec, default_d_a2
    from fedkron.base import empty_backbone

    d_a2 = options.d_a2
    if d_a2 is None:
        config: Any = empty_backbone(options.base or adapter.base_name).config
        d_a2 = default_d_a2(config.hidden_size)
    rank, d_a1 = (8 if options.rank is None else options.rank), (2 if options.d_a1 is None else options.d_a1)
    return AdapterSpec(KRON_LORA, rank, d_a1=d_a1, d_a2=d_a2)


def _write_peft(adapter: AdapterFile, options: argparse.Namespace) -> tuple[int, tuple[str, ...]]:
    from fedkron.exchange.peft_export import write_peft

    # Our base is a backbone; what it is part of elsewhere, only the user knows.
    task_type = options.task_type or (None if options.prefix else "FEATURE_EXTRACTION")
    export = write_peft(options.output, adapter, prefix=options.prefix or "", task_type=task_type)
    return export.rank, export.left_out


def _relative(errors: Sequence[LayerError]) -> dict[str, float]:
    from fedkron.exchange.conversion import total_relative

    relative = [error.relative for error in errors]
    return {
        "median": statistics.median(relative),
        "largest": max(relative),
        "total": total_relative(errors),
    }


def _show(conversion: Conversion) -> None:
    found = facts(conversion)
    kinds = ", ".join(f"{count} × {kind}" for kind, count in found["kinds"].items())
    exact = "exact"
    if (error := found["relative_error"]) is not None:
        exact = (
            f"relative error of ΔW {error['total']:.2%} in total, {error['median']:.2%} in the median layer, "
            f"{error['largest']:.2%} at most"
        )
    if conversion.peft_rank is not None:
        print(f"PEFT LoRA of rank {conversion.peft_rank} from {kinds}: {exact}")
    else:
        print(f"{kinds}: {exact}")
    if conversion.left_out:
        print(f"Left out, not part of the adapter there: {', '.join(conversion.left_out)}")
    print(f"Written: {conversion.output}")
