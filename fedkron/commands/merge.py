"""`fedkron merge`: adapters of several tasks, trained apart, become one."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from fedkron.aggregation.task_merging import METHODS, delta_cosine, merge_tasks, of_rank
from fedkron.errors import ConfigError, ContractError
from fedkron.exchange import AdapterFile, check_complete, load_adapter, save_adapter
from fedkron.rundir import ADAPTER

DEFAULT_DENSITY = 0.5


@dataclass(frozen=True)
class Input:
    """An adapter to merge, by a short name."""

    name: str
    adapter: AdapterFile
    weight: float


@dataclass(frozen=True)
class Merge:
    """What was written where. `cosines` are those of the merged ΔW with the ΔW of each input."""

    output: Path
    how: str
    inputs: Sequence[Input]
    projection_error: float
    cosines: Sequence[float]


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "merge",
        help="adapters of several tasks into one",
        description="Merge adapters that were trained apart, such as one for each task, into one that serves "
        "all of them, and print how much of each is left. They must be of one base, with the same layers, "
        "kinds and sizes.",
    )
    parser.add_argument("sources", type=Path, nargs="+", help="run folders or adapter files")
    parser.add_argument("-o", "--output", type=Path, required=True, help="file to write")
    parser.add_argument(
        "--method",
        choices=METHODS,
        default="mean",
        help="mean of ΔW; ties: of the largest numbers, where signs agree; dare: of numbers kept at random; "
        "dare_ties: both (default: mean)",
    )
    parser.add_argument(
        "--density",
        type=float,
        help=f"fraction of each task's numbers that is kept, not for mean (default: {DEFAULT_DENSITY})",
    )
    parser.add_argument("--weights", type=float, nargs="+", help="one for each source (default: equal)")
    parser.add_argument(
        "--scaling",
        type=float,
        default=1.0,
        help="factor λ of the merged ΔW; the number of sources adds them up",
    )
    parser.add_argument("--rank", type=int, help="rank of the merged adapter (default: that of the sources)")
    parser.add_argument("--seed", type=int, default=0, help="of what dare keeps (default: 0)")
    parser.add_argument("--json", action="store_true", help="print facts as JSON")
    parser.set_defaults(command=merge)


def merge(options: argparse.Namespace) -> int:
    """Merge, write, and print what the result has of each input."""
    if options.density is not None and options.method == "mean":
        raise ConfigError("--density is not for --method mean, which keeps all numbers")
    if options.output.is_dir():
        raise ConfigError(f"{options.output} is a folder: name a file to write")
    inputs = _read(options.sources, options.weights)
    merged = _merged(inputs, options)
    if options.json:
        print(json.dumps(facts(merged), indent=1))
    else:
        _show(merged)
    return 0


def facts(merged: Merge) -> dict[str, Any]:
    """What was merged and written, for programs."""
    return {
        "output": str(merged.output),
        "how": merged.how,
        "projection_error": merged.projection_error,
        "inputs": [
            {"name": source.name, "weight": source.weight, "cosine": cosine}
            for source, cosine in zip(merged.inputs, merged.cosines, strict=True)
        ],
    }


def _read(sources: Sequence[Path], weights: Sequence[float] | None) -> list[Input]:
    if weights is None:
        weights = [1.0] * len(sources)
    if len(weights) != len(sources):
        raise ConfigError(
            f"--weights has {len(weights)} numbers for {len(sources)} adapters: give one for each"
        )
    inputs = []
    for source, weight in zip(sources, weights, strict=True):
        adapter = load_adapter(source / ADAPTER if source.is_dir() else source)
        check_complete(adapter)
        inputs.append(Input(_name(source), adapter, weight))
    first = inputs[0].adapter.layout
    for path, each in zip(sources, inputs, strict=True):
        layout = each.adapter.layout
        if layout.contract != first.contract:
            why = "is of another base" if layout.base != first.base else "has other layers, kinds or sizes"
            raise ContractError(
                f"{path} {why} than {sources[0]} (contracts {layout.contract[:12]}… and "
                f"{first.contract[:12]}…): only adapters of one contract can be merged"
            )
    return inputs


def _name(source: Path) -> str:
    """The run's name for a run, the file's for a file; it goes into the lineage, which travels."""
    path = source.resolve()
    return path.parent.name if path.name == ADAPTER else path.name


def _merged(inputs: Sequence[Input], options: argparse.Namespace) -> Merge:
    layout = inputs[0].adapter.layout
    target = layout if options.rank is None else of_rank(layout, options.rank)
    density = DEFAULT_DENSITY if options.density is None else options.density
    found = merge_tasks(
        [source.adapter.state for source in inputs],
        layout,
        options.method,
        weights=[source.weight for source in inputs],
        density=density,
        scaling=options.scaling,
        seed=options.seed,
        target=target,
    )
    how = _how(options, density)
    names = ", ".join(f"{source.name} (weight {source.weight:g})" for source in inputs)
    origins = [f"{source.name}: {step}" for source in inputs for step in source.adapter.lineage]
    last = f"merged by {how} from {names}, relative projection error {found.projection_error:.4f}"
    spec = _spec([source.adapter.spec for source in inputs], options.rank)
    base_name = inputs[0].adapter.base_name
    save_adapter(
        options.output,
        AdapterFile(found.adapter, target, base_name, {"merged": how}, spec, (*origins, last)),
    )
    cosines = [delta_cosine(found.adapter, target, source.adapter.state, layout) for source in inputs]
    return Merge(options.output, how, inputs, found.projection_error, cosines)


def _how(options: argparse.Namespace, density: float) -> str:
    settings = [options.method]
    if options.method != "mean":
        settings.append(f"density {density:g}")
    if options.method.startswith("dare"):
        settings.append(f"seed {options.seed}")
    if options.scaling != 1:
        settings.append(f"scaling {options.scaling:g}")
    if options.rank is not None:
        settings.append(f"rank {options.rank}")
    return ", ".join(settings)


def _spec(specs: Sequence[dict[str, Any]], rank: int | None) -> dict[str, Any]:
    """What all inputs have in common; another rank goes with another α, since α/r stays as it is."""
    spec = {key: value for key, value in specs[0].items() if all(each.get(key) == value for each in specs)}
    if rank is not None:
        before, alpha = spec.pop("rank", None), spec.pop("alpha", None)
        if before and alpha:
            spec |= {"rank": rank, "alpha": alpha * rank / before}
    return spec


def _show(merged: Merge) -> None:
    console = Console()
    table = Table(title=f"Merged by {merged.how}", title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("adapter", overflow="fold")
    for heading in ("weight", "cosine of ΔW with the merged one"):
        table.add_column(heading, justify="right")
    for source, cosine in zip(merged.inputs, merged.cosines, strict=True):
        table.add_row(source.name, f"{source.weight:g}", f"{cosine:.3f}")
    console.print(table)
    console.print(
        f"Relative projection error {merged.projection_error:.2%}: so much of it one adapter does not hold.",
        highlight=False,
    )
    console.print(f"Written: {merged.output}", highlight=False, soft_wrap=True)
