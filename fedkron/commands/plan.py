"""`fedkron plan`: what an adapter would cost on a base, before any weight is downloaded."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from fedkron.estimate import payload_bytes
from fedkron.kinds import ADAPTER_KINDS
from fedkron.layout import AdapterLayout
from fedkron.ledger import BASELINE_RANK
from fedkron.report import BASELINE, kilobytes
from fedkron.settings import CodecSettings

if TYPE_CHECKING:
    from fedkron.adapters import AdapterSpec


CODECS = ("fp32", "fp16", "int8", "int4", "ecsq", "sign")
"""Codecs whose bytes the plan shows."""

DEFAULT_CODEC = CodecSettings().upload


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "plan",
        help="parameters and bytes for a base, without its weights",
        description="Show which layers of a base would be wrapped, how many parameters each adapter kind "
        "has, and what a payload weighs in each codec. Needs only the base's configuration.",
    )
    parser.add_argument("base", help="Hub id, folder with a config.json, or demo:all-minilm-l6-v2")
    parser.add_argument("--rank", type=int, default=8, help="r (default: 8)")
    parser.add_argument("--d-a1", type=int, default=2, help="columns of A (default: 2)")
    parser.add_argument("--d-a2", type=int, help="rows of A (default: power of two nearest to hidden/200)")
    parser.add_argument("--targets", default="*", help="glob patterns of layers to wrap, comma-separated")
    parser.add_argument("--layers", action="store_true", help="list the layers one by one")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(command=plan)


def plan(options: argparse.Namespace) -> int:
    """Print the plan."""
    from fedkron.adapters import AdapterSpec

    targets = tuple(part.strip() for part in options.targets.split(",") if part.strip())
    layouts = {
        kind: _layout(
            options.base,
            AdapterSpec(kind, options.rank, d_a1=options.d_a1, d_a2=options.d_a2, targets=targets),
        )
        for kind in ADAPTER_KINDS
    }
    facts = _facts(options.base, layouts)
    if options.json:
        print(json.dumps(facts, indent=1))
    else:
        _show(facts, list_layers=options.layers)
    return 0


def _layout(base: str, spec: AdapterSpec) -> AdapterLayout:
    from fedkron.adapters import adapter_layout, attach
    from fedkron.base import empty_backbone

    return adapter_layout(attach(empty_backbone(base), spec), base="")


def _facts(base: str, layouts: dict[str, AdapterLayout]) -> dict[str, Any]:
    layout = layouts["kron_lora"]
    baseline = 4 * layout.lora_size(BASELINE_RANK)
    return {
        "base": base,
        "layers": {
            module.path: {
                "weight": list(module.weight_shape),
                "factors": {f.name: list(f.shape) for f in module.factors},
            }
            for module in layout.modules
        },
        "baseline_bytes": baseline,
        "kinds": {
            kind: {
                "parameters": candidate.size,
                "payload_bytes": {name: payload_bytes(candidate, name) for name in CODECS},
            }
            for kind, candidate in layouts.items()
        },
    }


def _show(facts: dict[str, Any], *, list_layers: bool) -> None:
    console = Console()
    layers = facts["layers"]
    console.print(f"{facts['base']}: {len(layers)} linear layers would be wrapped", highlight=False)
    if list_layers:
        for path, layer in layers.items():
            shapes = ", ".join(f"{name} {shape}" for name, shape in layer["factors"].items())
            console.print(f"  {path}  {layer['weight']}: {shapes}", highlight=False)
    baseline = facts["baseline_bytes"]
    table = Table(
        title="One payload, by adapter kind", title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0)
    )
    kinds = facts["kinds"]
    for heading in ("codec", *kinds, f"kron_lora × smaller than {BASELINE}"):
        table.add_column(heading, justify="left" if heading == "codec" else "right")
    table.add_row("parameters", *(f"{figures['parameters']:,}" for figures in kinds.values()), "")
    for name in CODECS:
        sizes = [figures["payload_bytes"][name] for figures in kinds.values()]
        ours = kinds["kron_lora"]["payload_bytes"][name]
        table.add_row(name, *map(kilobytes, sizes), f"{baseline / ours:.1f}")
    console.print(table)
    payload = facts["kinds"]["kron_lora"]["payload_bytes"][DEFAULT_CODEC]
    console.print(
        f"A round with evaluation ({DEFAULT_CODEC}, update up and change down): {kilobytes(2 * payload)} "
        f"per client, {1.5 * baseline / payload:.1f}× less than {BASELINE}, sent three times.",
        highlight=False,
    )
