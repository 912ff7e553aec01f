"""`fedkron predict`: ask an exported bundle, on this CPU, without torch."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedkron.errors import TaskError

if TYPE_CHECKING:
    from fedkron.edge.runtime import Bundle


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "predict",
        help="answers of a bundle on this CPU",
        description="Answer with an exported bundle: ONNX Runtime, numpy and tokenizers, no torch.",
    )
    parser.add_argument("bundle", type=Path, help="bundle folder")
    parser.add_argument("text", nargs="*", help="texts or a question (default: lines of standard input)")
    parser.add_argument("--task", help="which task's head answers (default: all classification tasks)")
    parser.add_argument(
        "--choice", action="append", default=[], help="a choice to pick from; give two or more"
    )
    parser.add_argument("--adapter", type=Path, help="another adapter file with the same contract")
    parser.add_argument("--merged", action="store_true", help="use the graph with the adapter folded in")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: all)")
    parser.add_argument("--json", action="store_true", help="print all probabilities as JSON")
    parser.set_defaults(command=predict)


def predict(options: argparse.Namespace) -> int:
    """Print an answer per text and task."""
    from fedkron.edge.runtime import Bundle

    bundle = Bundle.open(options.bundle, threads=options.threads)
    if options.adapter is not None:
        bundle.load_adapter_file(options.adapter)
    texts = options.text or [line.rstrip("\n") for line in sys.stdin if line.strip()]
    if not texts:
        raise TaskError("there is no text: give one as an argument, or lines on standard input")
    answers = _choices(bundle, texts, options) if options.choice else _classes(bundle, texts, options)
    if options.json:
        print(json.dumps(answers, indent=1, ensure_ascii=False))
        return 0
    for answer in answers:
        print(f"{answer['task']}: {answer['label']} ({answer['probability']:.3f})  {answer['text']}")
    return 0


def _classes(bundle: Bundle, texts: list[str], options: argparse.Namespace) -> list[dict[str, Any]]:
    tasks = (
        [options.task]
        if options.task
        else _tasks(bundle, "classification", "name it with --task and --choice")
    )
    return [
        {"task": task, "text": text, **asdict(prediction)}
        for task in tasks
        for text, prediction in zip(texts, bundle.predict(texts, task, merged=options.merged), strict=True)
    ]


def _choices(bundle: Bundle, texts: list[str], options: argparse.Namespace) -> list[dict[str, Any]]:
    tasks = [options.task] if options.task else _tasks(bundle, "multiple_choice", "leave --choice out")
    return [
        {
            "task": task,
            "text": text,
            **asdict(bundle.choose(text, options.choice, task, merged=options.merged)),
        }
        for task in tasks
        for text in texts
    ]


def _tasks(bundle: Bundle, kind: str, otherwise: str) -> list[str]:
    tasks = [task for task, head in bundle.heads.items() if head.task_kind == kind]
    if not tasks:
        raise TaskError(f"this bundle has no {kind} task (it has {', '.join(bundle.heads)}): {otherwise}")
    return tasks
