"""What a task is made of: examples, checked one by one, and the task that holds them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fedkron.errors import TaskError

Kind = Literal["classification", "multiple_choice"]

FIELDS: dict[Kind, tuple[str, ...]] = {
    "classification": ("text", "label"),
    "multiple_choice": ("question", "choices", "answer"),
}
"""The fields that an example of each kind must have; others are ignored."""


@dataclass(frozen=True, slots=True)
class Classified:
    """A text and the index of its label among the task's labels."""

    text: str
    label: int


@dataclass(frozen=True, slots=True)
class MultipleChoice:
    """A question, two or more choices (their number may differ per question), the index of the right one."""

    question: str
    choices: tuple[str, ...]
    answer: int


Example = Classified | MultipleChoice


@dataclass(frozen=True)
class Task:
    """One task's data: `labels` by index (empty for multiple choice), and two splits, never empty."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    train: tuple[Example, ...]
    test: tuple[Example, ...]

    @property
    def majority(self) -> float:
        """Accuracy on `test` without looking at the text, in [0, 1].

        The share of the most frequent label; for multiple choice, chance: the mean of 1 / choices.
        """
        chances = [1 / len(example.choices) for example in self.test if isinstance(example, MultipleChoice)]
        frequency = Counter(example.label for example in self.test if isinstance(example, Classified))
        return (sum(chances) + max(frequency.values(), default=0)) / len(self.test)


def kind_of(fields: Container[str]) -> Kind:
    """The kind of task whose examples have these fields: multiple choice where there are `choices`."""
    return "multiple_choice" if "choices" in fields else "classification"


def parse_examples(
    rows: Iterable[tuple[int, object]], kind: Kind, labels: int, where: str
) -> tuple[Example, ...]:
    """Make numbered rows into the examples of a task of this kind with so many labels.

    `where` names their origin (`train.jsonl, line`) in the `TaskError` that is raised for a row that is
    not an object, a missing field, a value of the wrong type, or a label or answer out of range.
    """
    return tuple(_parse(row, kind, labels, f"{where} {number}") for number, row in rows)


def _parse(row: object, kind: Kind, labels: int, where: str) -> Example:
    if not isinstance(row, Mapping):
        raise TaskError(f"{where}: expected an object with fields, got {_shown(row)}.")
    missing = [field for field in FIELDS[kind] if field not in row]
    if missing:
        raise TaskError(
            f"{where}: missing {' and '.join(map(repr, missing))}. An example of a {kind} task has the "
            f"fields {', '.join(FIELDS[kind])}; this one has {', '.join(map(repr, row)) or 'none'}."
        )
    if kind == "multiple_choice":
        return _multiple_choice(row, where)
    return Classified(
        _text(row["text"], "text", where), _index(row["label"], "label", labels, "labels", where)
    )


def _multiple_choice(row: Mapping[str, Any], where: str) -> MultipleChoice:
    choices = row["choices"]
    if not isinstance(choices, list) or len(choices) < 2:
        raise TaskError(f"{where}: choices must be a list of 2 or more texts, got {_shown(choices)}.")
    return MultipleChoice(
        _text(row["question"], "question", where),
        tuple(_text(choice, "a choice", where) for choice in choices),
        _index(row["answer"], "answer", len(choices), "choices", where),
    )


def _text(value: object, field: str, where: str) -> str:
    if not isinstance(value, str):
        raise TaskError(f"{where}: {field} must be a text, got {_shown(value)}.")
    try:
        value.encode()
    except UnicodeEncodeError:
        # JSON may hold half an emoji ("\\ud83d"), which no tokenizer takes.
        raise TaskError(f"{where}: {field} is not valid Unicode: {_shown(value)}.") from None
    return value


def _index(value: object, field: str, count: int, counted: str, where: str) -> int:
    # bool is an int to Python, but `true` in a file is a mistake.
    if not isinstance(value, int) or isinstance(value, bool):
        raise TaskError(f"{where}: {field} must be a whole number, got {_shown(value)}.")
    if not 0 <= value < count:
        raise TaskError(
            f"{where}: {field} {value} is out of range: there are {count} {counted}, so it must be "
            f"0 to {count - 1}."
        )
    return value


def _shown(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
