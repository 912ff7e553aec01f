"""Reading a task from a folder of JSON Lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from clients.examples import Task, kind_of, parse_examples
from fedkron.errors import TaskError


def read_folder(folder: Path) -> Task:
    """Read `train.jsonl`, `test.jsonl` and, for classification, `labels.json` (names, by index).

    A line is `{"text", "label"}` or `{"question", "choices", "answer"}`; more fields do no harm. Raises
    `TaskError` with file and line for whatever is missing or malformed.
    """
    if not folder.is_dir():
        raise TaskError(
            f"There is no task folder {folder.absolute()}. A task is demo:NAME, a folder with train.jsonl "
            "and test.jsonl, or hf:OWNER/NAME from the Hugging Face Hub."
        )
    train, test = folder / "train.jsonl", folder / "test.jsonl"
    train_rows, test_rows = _read_json_lines(train), _read_json_lines(test)
    first = train_rows[0][1]
    kind = kind_of(first if isinstance(first, dict) else ())
    labels = _read_labels(folder / "labels.json") if kind == "classification" else ()
    return Task(
        name=folder.resolve().name,
        kind=kind,
        labels=labels,
        train=parse_examples(train_rows, kind, len(labels), f"{train}, line"),
        test=parse_examples(test_rows, kind, len(labels), f"{test}, line"),
    )


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise TaskError(f"{file.absolute()} is missing: a task folder must have it.") from None
    except UnicodeDecodeError as error:
        raise TaskError(f"{file} is not UTF-8 text ({error}). Save it as UTF-8.") from error


def _read_json_lines(file: Path) -> list[tuple[int, Any]]:
    """Every line that is not blank, with its number."""
    rows = []
    # Not splitlines(): it also breaks at characters that a JSON string may hold, such as U+2028.
    for number, line in enumerate(_read_text(file).split("\n"), start=1):
        if line.strip():
            try:
                rows.append((number, json.loads(line)))
            except json.JSONDecodeError as error:
                raise TaskError(
                    f"{file}, line {number}: not valid JSON ({error.msg} at character {error.pos + 1}). "
                    "Every line must be one complete JSON object."
                ) from error
    if not rows:
        raise TaskError(f"{file} has no examples. Each split of a task needs at least one.")
    return rows


def _read_labels(file: Path) -> tuple[str, ...]:
    try:
        names = json.loads(_read_text(file))
    except json.JSONDecodeError as error:
        raise TaskError(f"{file} is not valid JSON ({error}).") from error
    texts = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not texts or len(set(names)) < 2 or len(set(names)) < len(names):
        raise TaskError(
            f'{file} must be a list of two or more different label names, such as ["ham", "spam"], in the '
            f"order of the label numbers; it holds {ascii(names)[:80]}."
        )
    return tuple(names)
