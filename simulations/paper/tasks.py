"""The five multiple-choice tasks of the paper, and where their texts come from."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from clients.tasks import load_task
from fedkron.errors import TaskError

HUB: Mapping[str, str] = {
    "piqa": "hf:baber/piqa?question=goal&choices=sol1&choices=sol2&answer=label&test=validation",
    "hellaswag": "hf:Rowan/hellaswag?question=ctx&choices=endings&answer=label&test=validation",
    "winogrande": "hf:allenai/winogrande:winogrande_l"
    "?question=sentence&choices=option1&choices=option2&answer=answer&first=1&test=validation",
    "arc_easy": "hf:allenai/ai2_arc:ARC-Easy?choices=choices&answer=answerKey",
    "arc_challenge": "hf:allenai/ai2_arc:ARC-Challenge?choices=choices&answer=answerKey",
}
"""Where each task is on the Hugging Face Hub. Where the answers of its test split are hidden, the validation
split is the test."""

TASKS = tuple(HUB)
"""The tasks in the paper's order."""


def add_data_option(parser: argparse.ArgumentParser) -> None:
    """Add `--data FOLDER`, for `task_sources`."""
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        help=f"has the folders {', '.join(TASKS)}, each with train.jsonl and test.jsonl "
        "(default: the data sets of the Hugging Face Hub)",
    )


def task_sources(data: Path | None) -> dict[str, str]:
    """The source of each task by name, for `clients.tasks.load_task`: folders in `data`, else the Hub's.

    Reads each once, so that nothing starts that cannot end. Raises `TaskError` where one cannot be had.
    """
    sources = {name: str(data / name) if data else hub for name, hub in HUB.items()}
    for name, source in sources.items():
        try:
            load_task(source)
        except TaskError as error:
            way_out = (
                f"--data {data} must have all of {', '.join(TASKS)}" if data else "or give --data FOLDER"
            )
            raise TaskError(f"{name}: {error} ({way_out})") from error
    return sources
