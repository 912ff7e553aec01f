"""Compare a bundle with the torch model that it was made from.

python -m export.compare bundles/demo runs/demo --data tasks/trec/test.jsonl --task trec
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from fedkron.adapters import folded
from fedkron.base import load_base
from fedkron.commands.export_source import read_source
from fedkron.edge.check import Agreement, check_against_torch
from fedkron.edge.runtime import Bundle
from fedkron.errors import FedKronError, TaskError
from fedkron.prompts import choice_texts


def main(arguments: Sequence[str] | None = None) -> int:
    """Print how well both forms agree with torch; 0 when they do, 1 otherwise."""
    options = _parser().parse_args(arguments)
    try:
        agreements = _compare(options)
    except (FedKronError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps([asdict(agreement) for agreement in agreements], indent=1))
    else:
        _print_table(agreements)
    return int(any(a.difference > options.tolerance * a.magnitude for a in agreements))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m export.compare", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("bundle", type=Path, help="folder of the bundle")
    parser.add_argument(
        "source", type=Path, help="what it was exported from: a run folder or an adapter file"
    )
    parser.add_argument("--group", help="the group whose adapter was exported, where a run has several")
    parser.add_argument(
        "--head", type=Path, action="append", default=[], help="head file of a task (default: the run's)"
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path, help="JSON Lines with `text`, or `question` and `choices`")
    source.add_argument("--text", action="append", help="a text to compare on (may be repeated)")
    parser.add_argument("--task", action="append", help="only this task (may be repeated; default: all)")
    parser.add_argument("--base", help="where to load the base from (default: as at export)")
    parser.add_argument("--limit", type=int, help="use only so many lines of the data")
    parser.add_argument(
        "--tolerance", type=float, default=1e-4, help="of the largest logit (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _compare(options: argparse.Namespace) -> list[Agreement]:
    bundle = Bundle.open(options.bundle)
    tasks = bundle.tasks()
    wanted = options.task or list(tasks)
    if unknown := sorted(set(wanted) - tasks.keys()):
        raise TaskError(f"the bundle has no task {unknown[0]!r}: it has {', '.join(tasks)}")
    questions = [[text] for text in options.text] if options.text else _read(options.data, options.limit)
    exported = read_source(options.source, options.group, options.head)
    heads = [head for head in exported.heads if head.task in wanted]
    if missing := sorted(set(wanted) - {head.task for head in heads}):
        raise TaskError(f"{options.source} has no head of task {missing[0]!r}: give it with --head FILE")
    base = load_base(options.base or bundle.manifest.base_name)
    with folded(base.backbone, exported.terms):
        return check_against_torch(
            options.bundle,
            base,
            exported.adapter,
            heads,
            [text for texts in questions for text in texts],
            choices=[len(texts) for texts in questions],
        )


def _read(file: Path, limit: int | None) -> list[list[str]]:
    """The texts of each line: one, or one per choice."""
    questions = []
    for number, line in enumerate(file.read_text(encoding="utf-8").split("\n")[:limit], start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            choices = choice_texts(row["question"], row["choices"]) if "choices" in row else [row["text"]]
        except (ValueError, KeyError, TypeError) as error:
            raise TaskError(
                f"{file}, line {number} has no text, nor question and choices ({error!r})"
            ) from None
        questions.append(choices)
    if not questions:
        raise TaskError(f"{file} has no examples")
    return questions


def _print_table(agreements: Sequence[Agreement]) -> None:
    print(f"{'task':<16}{'form':<10}{'max difference':>16}{'largest logit':>16}{'same answers':>14}")
    for a in agreements:
        print(f"{a.task:<16}{a.form:<10}{a.difference:>16.2e}{a.magnitude:>16.2f}{a.same_answers:>14.1%}")


if __name__ == "__main__":
    sys.exit(main())
