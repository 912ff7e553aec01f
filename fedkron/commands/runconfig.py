"""Run configs as users write them: TOML files, or `KEY=VALUE` pairs as for `flwr run --run-config`."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedkron.errors import ConfigError

_PAIR = re.compile(r"""\s*(?P<key>[\w.-]+)\s*=\s*(?P<value>"(?:[^"\\]|\\.)*"|'[^']*'|[^\s"']+)(?=\s|$)""")


def read_run_config(text: str) -> dict[str, Any]:
    """A run config with dotted keys from the path of a TOML file, or from pairs separated by spaces.

    Raises `ConfigError` for a file or pairs that cannot be read. (Flower's own parser takes what it
    understands of the pairs and drops the rest.)
    """
    if text.endswith(".toml"):
        return flattened(read_toml(Path(text)))
    pairs: dict[str, Any] = {}
    position, end = 0, len(text.rstrip())
    while position < end:
        match = _PAIR.match(text, position)
        if match is None:
            raise ConfigError(
                f"run config {text[position:]!r} is not KEY=VALUE pairs: write 'seed=3 run-name=\"mine\"', "
                "or give a file that ends in .toml"
            )
        try:
            pairs[match["key"]] = tomllib.loads(f"value = {match['value']}")["value"]
        except tomllib.TOMLDecodeError:
            raise ConfigError(
                f"run-config key {match['key']!r} is {match['value']}, which is no TOML value: "
                "texts need quotes, as in 'base=\"my/base\"'"
            ) from None
        position = match.end()
    return pairs


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file; raises `ConfigError` when it is missing or not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"run-config file {path} does not exist") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"run-config file {path} cannot be read: {error}") from error


def flattened(tables: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tables.items():
        name = f"{prefix}{key}"
        flat |= flattened(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat


def as_toml(config: Mapping[str, Any]) -> str:
    """A run config with dotted keys as TOML, a line for each key."""
    # JSON's strings, numbers and booleans are valid TOML, except for escaped surrogates.
    return "\n".join(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in config.items())
