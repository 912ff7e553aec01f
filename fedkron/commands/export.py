"""`fedkron export`: from a run to a folder that a device can use."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from rich import box
from rich.console import Console
from rich.table import Table

from fedkron.commands.export_source import read_source
from fedkron.edge.slot_encoding import ENCODINGS
from fedkron.errors import ConfigError
from fedkron.exchange import folded_fingerprint, load_adapter

if TYPE_CHECKING:
    from fedkron.edge.check import Agreement

SAMPLE_TEXTS = (
    "Who wrote the opera that opened in Vienna in 1786?",
    "Free entry! Text WIN to 80086 and claim your prize now.",
    "a slow, touching film with two fine performances and a third act that nobody needed",
    "Thanks.",
    "The trains were late again, the coffee was cold, and still it was the best day of the year so far.",
)
"""Texts of different lengths and kinds, for the comparison with torch after each export."""


LANGUAGE_MODEL_LENGTH = 512
"""Tokens that a prompt and its continuation may have together, unless told otherwise."""


@dataclass(frozen=True)
class Forms:
    """In which forms a bundle is written; see `fedkron.edge.bundle.write_bundle`."""

    slot: str = "fp32"
    base: str = "fp32"
    merged: bool = True
    max_length: int | None = None


DEFAULT_FORMS = Forms()


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "export",
        help="write an ONNX bundle for edge devices",
        description="Export a run's adapter with its base to ONNX, merged and unmerged, and compare both "
        "with torch. The bundle runs with `fedkron predict`, without torch.",
    )
    parser.add_argument("source", type=Path, help="run folder, or an adapter file (then give --head, too)")
    parser.add_argument(
        "-o", "--output", type=Path, help="folder to write (default: bundle, beside the adapter)"
    )
    parser.add_argument(
        "--group", help="the task, cluster or size whose adapter is meant, where a run has several"
    )
    parser.add_argument(
        "--head",
        type=Path,
        action="append",
        default=[],
        help="head file of a task; may be repeated (default: those in the run folder)",
    )
    parser.add_argument("--base", help="Hub id or path of the base, if it is not where the run found it")
    parser.add_argument(
        "--max-length",
        type=int,
        help="tokens per text (default: that of the run's training, else 64; of a language model, with what "
        f"it adds, {LANGUAGE_MODEL_LENGTH})",
    )
    parser.add_argument(
        "--into",
        type=Path,
        metavar="BUNDLE",
        help="add the adapter to this bundle instead of writing a new one (then give --name, too)",
    )
    parser.add_argument("--name", help="name of the adapter within the bundle of --into")
    parser.add_argument(
        "--language-model",
        action="store_true",
        help="the base is a causal language model with its head, and the adapter was trained on it as such: "
        "the bundle continues texts",
    )
    parser.add_argument(
        "--slot",
        choices=ENCODINGS,
        default=DEFAULT_FORMS.slot,
        help="how adapters are written in the graph's slot (default: %(default)s)",
    )
    parser.add_argument(
        "--base-form",
        choices=["fp32", "int8", "nbits8"],
        default=DEFAULT_FORMS.base,
        help="how the base's weights are stored: int8 is the smallest and fastest, fp32 exact "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--no-merged", action="store_true", help="leave out the graphs with the adapter folded in"
    )
    parser.add_argument("--json", action="store_true", help="print the comparison with torch as JSON")
    parser.set_defaults(command=export)


def export(options: argparse.Namespace) -> int:
    """Write the bundle, compare it with torch, and print where it is."""
    if options.into is not None:
        return _add(options)
    forms = Forms(options.slot, options.base_form, not options.no_merged, options.max_length)
    if options.language_model:
        folder, agreements = export_language_model(
            options.source, options.output, base_name=options.base, forms=forms, report=_report
        )
    else:
        folder, agreements = export_bundle(
            options.source,
            options.output,
            group=options.group,
            head_files=options.head,
            base_name=options.base,
            forms=forms,
            report=_report,
        )
    if options.json:
        content = {"bundle": str(folder), "agreement": [asdict(agreement) for agreement in agreements]}
        print(json.dumps(content, indent=1))
    else:
        Console().print(agreement_table(agreements))
        print(f"Bundle: {folder}")
    return 0


def _add(options: argparse.Namespace) -> int:
    """Add an adapter to a bundle that is there."""
    from fedkron.edge.bundle_adapters import add_to_bundle

    if not options.name:
        raise ConfigError("--into needs the adapter's name within the bundle: give --name NAME")
    if options.language_model:
        adapter, heads = load_adapter(options.source), []
    else:
        source = read_source(options.source, options.group, options.head)
        adapter, heads = source.adapter, list(source.heads)
    entry = add_to_bundle(options.into, options.name, adapter, heads)
    if options.json:
        print(json.dumps({"bundle": str(options.into), "adapter": entry.name, "file": entry.file}, indent=1))
    else:
        print(f"Adapter {entry.name}: {options.into / entry.file}")
    return 0


def _report(line: str) -> None:
    print(line, file=sys.stderr)


def export_bundle(
    source: Path,
    output: Path | None,
    *,
    group: str | None = None,
    head_files: Sequence[Path] = (),
    base_name: str | None = None,
    forms: Forms = DEFAULT_FORMS,
    report: Callable[[str], None],
) -> tuple[Path, list[Agreement]]:
    """Export a run folder or an adapter file; returns the bundle's folder and how it agrees with torch.

    Terms that belong to the base of a run are folded into it. Raises what `write_bundle` raises, and
    `BundleError` when there is no head, or no adapter of this group.
    """
    from fedkron.adapters import folded
    from fedkron.base import load_any_base
    from fedkron.edge.bundle import write_bundle
    from fedkron.edge.check import check_against_torch

    exported = read_source(source, group, head_files)
    adapter, heads, trained = exported.adapter, exported.heads, exported.trained
    folder = output or (exported.file.parent / "bundle")
    base = load_any_base(base_name or adapter.base_name)
    if base.tokenizer is not None:
        base.tokenizer.truncation_side = trained.truncation_side
    if exported.terms:
        report(f"Folding {len(exported.terms)} sets of terms into the base ...")
        base = replace(base, fingerprint=folded_fingerprint(base.fingerprint, exported.terms))
    with folded(base.backbone, exported.terms):
        write_bundle(
            folder,
            base,
            adapter,
            heads,
            max_length=forms.max_length or trained.max_length,
            encoding=forms.slot,
            base_form=forms.base,
            merged=forms.merged,
            report=report,
        )
        samples = SAMPLE_TEXTS if base.image_processor is None else sample_images()
        return folder, check_against_torch(folder, base, adapter, heads, samples)


def export_language_model(
    adapter_file: Path,
    output: Path | None,
    *,
    base_name: str | None = None,
    forms: Forms = DEFAULT_FORMS,
    report: Callable[[str], None],
) -> tuple[Path, list[Agreement]]:
    """Export an adapter file of a causal language model; returns the folder and how it agrees with torch.

    Raises what `write_language_bundle` raises.
    """
    from fedkron.base import load_language_model
    from fedkron.edge.check import check_language_model
    from fedkron.edge.language_bundle import write_language_bundle

    adapter = load_adapter(adapter_file)
    base = load_language_model(base_name or adapter.base_name)
    folder = write_language_bundle(
        output or (adapter_file.parent / "bundle"),
        base,
        adapter,
        max_length=forms.max_length or LANGUAGE_MODEL_LENGTH,
        encoding=forms.slot,
        base_form=forms.base,
        merged=forms.merged,
        report=report,
    )
    return folder, check_language_model(folder, base, adapter, SAMPLE_TEXTS)


def sample_images() -> list[npt.NDArray[np.uint8]]:
    """Images of noise, for the comparison with torch."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (200 + 50 * i, 300, 3), np.uint8) for i in range(4)]


def agreement_table(agreements: Sequence[Agreement]) -> Table:
    """The comparison of a bundle with torch, for people."""
    table = Table(title="ONNX Runtime against torch", title_justify="left", box=box.SIMPLE)
    for heading in ("task", "form", "max absolute difference", "largest logit", "same answers"):
        table.add_column(heading, justify="left" if heading in {"task", "form"} else "right")
    for a in agreements:
        table.add_row(a.task, a.form, f"{a.difference:.1e}", f"{a.magnitude:.2f}", f"{a.same_answers:.0%}")
    return table
