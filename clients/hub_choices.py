"""The forms in which data sets of the Hub hold choices and answers, made into the one of a task."""

from __future__ import annotations

from typing import Any


def with_choices(question: object, columns: list[Any], answer: object, first: int) -> dict[str, Any]:
    """The fields `question`, `choices` and `answer` (counted from 0) of one row.

    `columns` holds the value of each column of choices: one list of texts, one `{"text": […], "label": […]}`
    whose labels the answer is one of (ARC), or one text per column. Else `answer` is a number, or text that
    is one, counted from `first`. What fits none of these stays as it is, for the check of the example.
    """
    choices = columns[0] if len(columns) == 1 else columns
    if isinstance(choices, dict) and {"text", "label"} <= choices.keys():
        labels = list(choices["label"])
        found = labels.index(answer) if answer in labels else answer
        return {"question": question, "choices": choices["text"], "answer": found}
    if isinstance(answer, str) and answer.isdecimal():
        answer = int(answer)
    if isinstance(answer, int) and not isinstance(answer, bool):
        answer -= first
    return {"question": question, "choices": choices, "answer": answer}
