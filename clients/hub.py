"""Reading a task through the Hugging Face `datasets` client: from the Hub, its cache, or a local path."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from clients.examples import FIELDS, Example, Task, kind_of, parse_examples
from clients.hub_choices import with_choices
from fedkron.errors import TaskError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

_USAGE = "hf:OWNER/NAME[:CONFIG][?FIELD=COLUMN&...]"
_TEST, _FIRST = "test", "first"


@dataclass(frozen=True)
class _Reference:
    """A data set, and where in it the fields of an example are; `choices` may be in several columns."""

    path: str
    config: str | None
    columns: dict[str, tuple[str, ...]]
    test: tuple[str, ...] = ("test", "validation")
    first: int = 0


def read_hub(reference: str) -> Task:
    """Read the data set `OWNER/NAME[:CONFIG][?FIELD=COLUMN&...]`, or a local path that `datasets` can load.

    `?text=sentence&label=gold` says which columns hold the fields of an example (`text`, `label`, or
    `question`, `choices`, `answer`); by default they have the fields' own names. Labels are a `ClassLabel`
    column, or whole numbers 0, 1, … that then name themselves. Choices are a list of texts, several columns
    (`?choices=one&choices=two`), or texts with labels, one of which is the answer, as in ARC; else the
    answer is the number of a choice, counted from 0 or from `?first=1`. `test` is the split `test`, or
    `validation` where there is no `test`, or the one that `?test=SPLIT` names (where the answers of `test`
    are hidden). Raises `TaskError` where the Hub cannot be reached, the data set does not exist, or its
    content does not fit.
    """
    asked = _parse_reference(reference)
    source = f"hf:{reference}"
    splits = _load(asked.path, asked.config, source)
    train, test = _split(splits, ("train",), source), _split(splits, asked.test, source)
    kind = kind_of({*asked.columns, *train.column_names})
    columns = {field: asked.columns.get(field, (field,)) for field in FIELDS[kind]}
    for split in (train, test):
        _check_columns(split, columns, source)
    labels = _label_names(train, test, columns["label"][0], source) if kind == "classification" else ()

    def examples(split: Dataset) -> tuple[Example, ...]:
        rows = split.select_columns([column for several in columns.values() for column in several]).to_list()
        renamed = [
            {field: [row[column] for column in several] for field, several in columns.items()} for row in rows
        ]
        return parse_examples(
            enumerate(_example_fields(row, asked.first) for row in renamed),
            kind,
            len(labels),
            f"{source}, split {split.split}, row",
        )

    path, config = asked.path, asked.config
    name = Path(path).resolve().name if config is None else f"{Path(path).name}-{config}"
    return Task(name=name, kind=kind, labels=labels, train=examples(train), test=examples(test))


def _example_fields(row: dict[str, list[Any]], first: int) -> dict[str, Any]:
    if "choices" in row:
        return with_choices(row["question"][0], row["choices"], row["answer"][0], first)
    return {field: values[0] for field, values in row.items()}


def _parse_reference(reference: str) -> _Reference:
    body, _, query = reference.partition("?")
    try:
        pairs = parse_qsl(query, strict_parsing=True) if query else []
    except ValueError as error:
        raise TaskError(f"hf:{reference} cannot be understood ({error}). Write {_USAGE}.") from error
    said: dict[str, tuple[str, ...]] = {}
    for key, value in pairs:
        said[key] = (*said.get(key, ()), value)
    fields = [field for several in FIELDS.values() for field in several]
    if unknown := sorted(said.keys() - {*fields, _TEST, _FIRST}):
        raise TaskError(
            f"hf:{reference}: unknown field {unknown[0]!r}. The fields are {', '.join(fields)}; "
            f"{_TEST} names a split, and {_FIRST} is the number of the first choice."
        )
    if twice := [key for key, values in said.items() if len(values) > 1 and key != "choices"]:
        raise TaskError(f"hf:{reference} says {twice[0]} twice: only choices may be in several columns.")
    path, _, config = body.partition(":")
    if not path:
        raise TaskError(f"hf:{reference} names no data set. Write {_USAGE}.")
    test, (first,) = said.pop(_TEST, _Reference.test), said.pop(_FIRST, ("0",))
    if first not in ("0", "1"):
        raise TaskError(f"hf:{reference}: {_FIRST}={first}, but choices are counted from 0 or 1.")
    local = Path(body).expanduser()
    if local.exists():
        return _Reference(str(local), None, said, test, int(first))
    return _Reference(path, config or None, said, test, int(first))


def _load(path: str, config: str | None, source: str) -> DatasetDict:
    import datasets  # here, because it takes seconds and most tasks are folders

    try:
        return datasets.load_dataset(path, name=config)
    except ConnectionError as error:
        raise TaskError(
            f"{source}: the Hugging Face Hub cannot be reached from here, and its data set is not in the "
            f"local cache ({error}). Check the network and HF_HUB_OFFLINE, load it once where there is a "
            "network and copy that cache, or use demo:NAME or a folder with train.jsonl and test.jsonl."
        ) from error
    # RuntimeError: the data set is a script. ValueError: an unknown config, or an empty split.
    except (OSError, RuntimeError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise TaskError(
            f"{source} could not be loaded: {error} Check the name and the config ({_USAGE}) and that "
            "no split is empty; a private data set needs `hf auth login`."
        ) from error


def _split(splits: DatasetDict, names: tuple[str, ...], source: str) -> Dataset:
    for name in names:
        if name in splits:
            return splits[name]
    raise TaskError(
        f"{source} has no split {' or '.join(names)}, only {', '.join(splits)}. A task needs both."
    )


def _check_columns(split: Dataset, columns: dict[str, tuple[str, ...]], source: str) -> None:
    for field, column in ((field, column) for field, several in columns.items() for column in several):
        if column not in split.column_names:
            raise TaskError(
                f"{source}: split {split.split} has no column {column!r}, only "
                f"{', '.join(split.column_names)}. Say which one holds the {field}: hf:...?{field}=COLUMN."
            )


def _label_names(train: Dataset, test: Dataset, column: str, source: str) -> tuple[str, ...]:
    import datasets

    feature = train.features[column]
    if isinstance(feature, datasets.ClassLabel):
        return tuple(feature.names)
    found: set[Any] = {*train.unique(column), *test.unique(column)}
    if found != set(range(len(found))) or len(found) < 2:
        raise TaskError(
            f"{source}: column {column!r} does not hold labels 0, 1, ... but {list(found)[:5]!a}. "
            f"Use a whole-number column, or a ClassLabel one (`class_encode_column({column!r})`)."
        )
    return tuple(map(str, range(len(found))))
