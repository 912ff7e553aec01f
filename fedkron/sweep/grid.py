"""A sweep file: settings that all runs have in common, and those that are combined.

[run]                                 as in a run config, and `nodes`, `cpus-per-node`, `gpus-per-node`
tasks = "demo:trec,demo:spam"

[grid]                                every combination is a cell
"adapter.kind" = ["kron_lora", "lora"]
seed = [0, 1, 2]
codec = [                             tables set several keys together
    {upload = "int4", broadcast = "int4"},
    {upload = "ecsq", broadcast = "ecsq"},
]

[[exclude]]                           leave out the cells that have all of these values; a list is any of them
"adapter.kind" = "lora"
"codec.upload" = ["int4"]

[[include]]                           one more grid, on top of [run]; [grid] and [[exclude]] do not touch it
aggregation = ["merged"]
seed = [0, 1, 2]
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeAlias

from fedkron.commands.runconfig import flattened, read_toml
from fedkron.errors import ConfigError, FedKronError
from fedkron.settings import Settings, run_config

Values: TypeAlias = "Mapping[str, Any]"

TABLES = ("run", "grid", "exclude", "include")
OWN_KEYS = ("output-dir", "run-name", "resume")
"""Settings that a sweep chooses for each of its cells."""

LONGEST = 80
"""Characters of a cell's name, without its hash."""

SHOWN_CELLS = 3


@dataclass(frozen=True)
class Simulation:
    """What `fedkron run` takes beside settings; 0 nodes are one for each task."""

    nodes: int = 0
    cpus_per_node: int = 1
    gpus_per_node: float = 0.0


@dataclass(frozen=True)
class Cell:
    """One run of a sweep. `varied` has the values of the keys that the sweep file varies."""

    name: str
    settings: Settings
    simulation: Simulation
    varied: Values


@dataclass(frozen=True)
class Grid:
    """The cells of a sweep, none twice, and the keys that the file varies, in its order."""

    cells: tuple[Cell, ...]
    keys: tuple[str, ...]


def read_grid(file: Path, defaults: Values, localize: Callable[[Settings], Settings]) -> Grid:
    """The cells of a sweep file, on top of an app's own run config, each checked. `localize` makes of their
    settings what they are on this machine, and may raise a `FedKronError`; names do not depend on it.

    Raises `ConfigError` that names all that is wrong with the file.
    """
    content = read_toml(file)
    if unknown := [name for name in content if name not in TABLES]:
        raise ConfigError(f"{file} has {unknown[0]!r}: a sweep file has {', '.join(TABLES)}")
    common = dict(defaults) | flattened(_table(content, "run", file))
    combinations = [
        *_left(expanded(_table(content, "grid", file)), _tables(content, "exclude", file)),
        *(cell for table in _tables(content, "include", file) for cell in expanded(table)),
    ]
    keys = tuple(dict.fromkeys(key for values in combinations for key in values))
    configs = [common | values for values in combinations]
    return Grid(_checked(configs, keys, localize, file), keys)


def expanded(table: Values) -> list[dict[str, Any]]:
    """Every combination of the lists in a grid, the last key varying fastest; a plain value is a list of one.

    A list of tables sets several keys together; under the name of a table of settings (`codec`), its keys
    are those of that table. Raises `ConfigError` for an empty list and for a key that is there twice.
    """
    axes = []
    for name, values in flattened(table).items():
        options = values if isinstance(values, list) else [values]
        if not options:
            raise ConfigError(f"{name!r} is an empty list: give it a value, or leave it out")
        axes.append([_option(name, value) for value in options])
    return [_merged(parts) for parts in itertools.product(*axes)]


def _option(name: str, value: object) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {name: value}
    groups = {key.partition(".")[0] for key in KEYS if "." in key}
    return flattened(value, f"{name}." if name in groups else "")


def _merged(parts: Sequence[Values]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for part in parts:
        if twice := merged.keys() & part.keys():
            raise ConfigError(f"{min(twice)!r} is set twice: by a key of its own, and together with others")
        merged |= part
    return merged


def _left(combinations: Sequence[dict[str, Any]], exclusions: Sequence[Values]) -> Iterator[dict[str, Any]]:
    """What no exclusion fits. Raises `ConfigError` for one that fits nothing."""
    excluded = [{key: _listed(value) for key, value in flattened(table).items()} for table in exclusions]
    used = [False] * len(excluded)
    for values in combinations:
        fits = [all(key in values and values[key] in any_of for key, any_of in e.items()) for e in excluded]
        used = [before or now for before, now in zip(used, fits, strict=True)]
        if not any(fits):
            yield values
    for table, fitted in zip(excluded, used, strict=True):
        if not fitted:
            raise ConfigError(f"[[exclude]] {table} fits no cell: it can name keys and values of [grid] only")


def _checked(
    configs: Sequence[Values], keys: Sequence[str], localize: Callable[[Settings], Settings], file: Path
) -> tuple[Cell, ...]:
    cells: dict[str, Cell] = {}
    errors: dict[str, list[str]] = {}
    for config in configs:
        varied = {key: config[key] for key in keys if key in config}
        try:
            cell = _cell(config, keys)
            cell = replace(cell, settings=localize(cell.settings))
        except FedKronError as error:
            errors.setdefault(str(error), []).append(_described(varied) or "the only cell")
        else:
            cells.setdefault(cell.name, cell)
    if errors:
        count = sum(map(len, errors.values()))
        lines = [f"  {message} ({_some(who)})" for message, who in errors.items()]
        raise ConfigError("\n".join([f"{file}: {count} of {len(configs)} cells cannot run:", *lines]))
    if not cells:
        raise ConfigError(f"{file} has no cells: [[exclude]] leaves none")
    return tuple(cells.values())


def _cell(config: Values, keys: Sequence[str]) -> Cell:
    if own := [key for key in OWN_KEYS if config.get(key) not in (None, DEFAULTS[key])]:
        raise ConfigError(f"run-config key {own[0]!r} is {config[own[0]]!r}: a sweep sets it for each cell")
    simulation = _simulation({key: config[key] for key in SIMULATION_KEYS if key in config})
    settings = Settings.from_run_config({k: v for k, v in config.items() if k not in SIMULATION_KEYS})
    known = run_config(settings) | {key: getattr(simulation, name) for key, name in SIMULATION_KEYS.items()}
    if not simulation.nodes:
        known["nodes"] = len(settings.task_sources)
        simulation = Simulation(known["nodes"], simulation.cpus_per_node, simulation.gpus_per_node)
    identity = {key: value for key, value in known.items() if key not in OWN_KEYS}
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
    varied = {key: known[key] for key in keys}
    return Cell("-".join([*_words(varied), digest]), settings, simulation, varied)


def _simulation(values: Values) -> Simulation:
    for key, value in values.items():
        whole = key != "gpus-per-node"
        low = 0 if key == "gpus-per-node" else 1
        if type(value) not in ((int,) if whole else (int, float)) or value < low:
            raise ConfigError(f"run key {key!r} is {value!r}: it must be a number of at least {low}")
    return Simulation(**{SIMULATION_KEYS[key]: value for key, value in values.items()})


def _words(varied: Values) -> list[str]:
    """What tells cells apart for people, as parts of the name of a folder."""
    texts = [v if isinstance(v, str) else f"{k.rpartition('.')[2]}{v}" for k, v in varied.items()]
    name = "-".join(re.sub(r"[^\w.]+", "_", text).strip("._") for text in dict.fromkeys(texts))
    return [name[:LONGEST].strip("._-")] if name else []


def _described(varied: Values) -> str:
    return " ".join(f"{key}={value}" for key, value in varied.items())


def _some(names: Sequence[str]) -> str:
    rest = len(names) - SHOWN_CELLS
    return "; ".join(names[:SHOWN_CELLS]) + (f"; and {rest} more" if rest > 0 else "")


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


def _table(content: Values, name: str, file: Path) -> Values:
    table = content.get(name, {})
    if not isinstance(table, Mapping):
        raise ConfigError(f"{name!r} in {file} is {table!r}: it must be a table, [{name}]")
    return table


def _tables(content: Values, name: str, file: Path) -> Sequence[Values]:
    tables = content.get(name, [])
    if not isinstance(tables, list) or not all(isinstance(table, Mapping) for table in tables):
        raise ConfigError(f"{name!r} in {file} is {tables!r}: it must be tables, [[{name}]]")
    return tables


DEFAULTS = run_config(Settings())
SIMULATION_KEYS = {item.name.replace("_", "-"): item.name for item in fields(Simulation)}
KEYS = (*DEFAULTS, *SIMULATION_KEYS)
