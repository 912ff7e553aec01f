"""JSON into frozen dataclasses, strictly: each key, with a value of exactly its type, and nothing else."""

from __future__ import annotations

import types
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from fedkron.errors import ExchangeError

T = TypeVar("T")


def read_as(kind: type[T], content: object) -> T:
    """A dataclass from the JSON object with its fields.

    Raises `ExchangeError` for missing and unknown keys and for values of another type: 1 is not 1.0, and
    true is not 1. Fields may be of plain types, `Any` (some JSON), dataclasses, `X | None`,
    `tuple[X, ...]` and `dict[str, X]`.
    """
    value: T = _read(kind, content, "it")
    return value


def _read(kind: Any, content: Any, where: str) -> Any:  # noqa: ANN401
    if kind is Any:
        return content
    if is_dataclass(kind):
        return _dataclass(kind, content, where)
    origin, parts = get_origin(kind), get_args(kind)
    if origin is types.UnionType:
        return None if content is None else _read(parts[0], content, where)
    if origin is tuple:
        return tuple(
            _read(parts[0], item, f"{where}[{i}]") for i, item in enumerate(_of(list, content, where))
        )
    if origin is dict:
        items = _of(dict, content, where).items()
        return {key: _read(parts[1], value, f"{where}.{key:.40}") for key, value in items}
    return _of(kind, content, where)


def _dataclass(kind: Any, content: Any, where: str) -> Any:  # noqa: ANN401
    found, types_by_name = _of(dict, content, where), _types(kind)
    if unknown := sorted(found.keys() - types_by_name.keys()):
        raise ExchangeError(f"{where} has a key {unknown[0]!r:.60}, which is not known here: update fedkron")
    if missing := sorted(types_by_name.keys() - found.keys()):
        raise ExchangeError(f"{where} has no key {missing[0]!r}")
    return kind(**{name: _read(type_, found[name], name) for name, type_ in types_by_name.items()})


@cache
def _types(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def _of(kind: type[T], content: object, where: str) -> T:
    if type(content) is not kind:
        raise ExchangeError(f"{where} is {content!r:.60}, not of type {kind.__name__}")
    return content
