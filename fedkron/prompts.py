"""How an example becomes text: the same on a training node and on an edge device."""

from __future__ import annotations

from collections.abc import Sequence


def choice_texts(question: str, choices: Sequence[str]) -> list[str]:
    """One text per choice to be scored: the choice fills the question's blank `_`, or follows it."""
    if "_" in question:
        return [question.replace("_", choice, 1) for choice in choices]
    return [f"{question} {choice}" for choice in choices]
