"""Bodies of requests: read up to a limit, and checked field by field before anything is done with them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request

MAX_REQUEST = 1 << 20
"""Bytes of a question, at most."""
MAX_TEXTS = 256
"""Texts or choices in one request, at most."""


async def read_body(request: Request, limit: int) -> bytes:
    """The body; answers 413 when it has more bytes than `limit`, without reading the rest."""
    content = bytearray()
    if int(request.headers.get("content-length", 0)) <= limit:
        async for chunk in request.stream():
            content += chunk
            if len(content) > limit:
                break
        else:
            return bytes(content)
    raise HTTPException(413, f"the body has more than {limit} bytes: send less")


async def read_fields(request: Request, known: set[str]) -> dict[str, Any]:
    """The JSON object in the body; answers 400 for anything else, and 413 when it is too large.

    A field that is not among the `known` is a slip that must not go unnoticed.
    """
    try:
        content = json.loads(await read_body(request, MAX_REQUEST))
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"the body is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise HTTPException(400, f"the body is a JSON {type(content).__name__}: send an object")
    if unknown := sorted(content.keys() - known):
        raise HTTPException(400, f"field {unknown[0]!r} is not known here: {', '.join(sorted(known))} are")
    return content


def text_in(fields: Mapping[str, Any], name: str) -> str:
    """A field with a string; answers 400 when it is missing or something else."""
    return _text(name, _value(fields, name))


def texts_in(fields: Mapping[str, Any], name: str) -> list[str]:
    """A field with 1 to `MAX_TEXTS` strings; answers 400, or 413 for too many."""
    value = _value(fields, name)
    if not isinstance(value, list) or not value:
        raise HTTPException(400, f"field {name!r} is {_short(value)}: send a list of one string or more")
    if len(value) > MAX_TEXTS:
        raise HTTPException(413, f"field {name!r} has {len(value)} strings, at most {MAX_TEXTS} may")
    return [_text(name, text) for text in value]


def names_in(fields: Mapping[str, Any], name: str, number: int) -> list[str]:
    """A field with one name for all of a request's texts, or one for each; always as a name for each."""
    value = _value(fields, name)
    if not isinstance(value, list):
        return [_text(name, value)] * number
    if len(value) != number:
        raise HTTPException(
            400, f"field {name!r} has {len(value)} names for {number} texts: send one, or one for each"
        )
    return [_text(name, text) for text in value]


def _value(fields: Mapping[str, Any], name: str) -> object:
    if name not in fields:
        raise HTTPException(400, f"field {name!r} is missing")
    return fields[name]


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise HTTPException(400, f"field {name!r} has {_short(value)}: send a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise HTTPException(400, f"field {name!r} is not valid Unicode: {error}") from error
    return value


def _short(value: object) -> str:
    return repr(value) if len(repr(value)) < 40 else f"{repr(value)[:40]}…"
