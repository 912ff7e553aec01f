"""Settings as a flat run config with dotted keys (`train.batch-size`), and back: typed, nothing unknown."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, TypeVar, get_type_hints

from fedkron.errors import ConfigError

T = TypeVar("T")


def run_config(settings: object, prefix: str = "") -> dict[str, Any]:
    """Settings as a flat run config with dotted keys: the inverse of `Settings.from_run_config`."""
    flat: dict[str, Any] = {}
    for item in fields(settings):  # type: ignore[arg-type]
        value = getattr(settings, item.name)
        key = prefix + item.name.replace("_", "-")
        flat.update(run_config(value, f"{key}.") if is_dataclass(value) else {key: value})
    return flat


def typed(cls: type[T], config: Mapping[str, object]) -> T:
    """A flat run config as a dataclass; absent keys take their defaults.

    Raises `ConfigError` for a key that does not exist, and for a value of another type.
    """
    made = _nested(cls, config, prefix="")
    known = set(run_config(made))
    if unknown := sorted(config.keys() - known):
        raise ConfigError(
            f"run-config key {unknown[0]!r} does not exist: the keys are {', '.join(sorted(known))}"
        )
    return made


def _nested(cls: type[T], config: Mapping[str, object], prefix: str) -> T:
    hints = _hints(cls)  # type: ignore[arg-type]  # a class is hashable
    values: dict[str, object] = {}
    for item in fields(cls):  # type: ignore[arg-type]
        key = prefix + item.name.replace("_", "-")
        wanted = hints[item.name]
        if isinstance(wanted, type) and is_dataclass(wanted):
            values[item.name] = _nested(wanted, config, f"{key}.")
        elif key in config:
            values[item.name] = _converted(key, config[key], wanted)
    return cls(**values)


@cache  # it takes most of the time that settings take, and they are read for every message
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _converted(key: str, value: object, wanted: type) -> object:
    # TOML writes 1 where a float is meant; nothing else is converted, and a bool is not a number.
    if wanted is float and type(value) is int:
        value = float(value)
    if type(value) is not wanted:
        raise ConfigError(
            f"run-config key {key!r} is {value!r} ({type(value).__name__}): "
            f"it must be of type {wanted.__name__}"
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"run-config key {key!r} is {value}: it must be a finite number")
    return value
