"""Reading a task through the Hugging Face `datasets` client: from the Hub, its cache, or a local path."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from clients.examples import FIELDS, Example, Task, kind_of, parse_examples
from fedkron.errors import TaskError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

_USAGE = "hf:OWNER/NAME[:CONFIG][?FIELD=COLUMN&...]"


def read_hub(reference: str) -> Task:
    """Read the data set `OWNER/NAME[:CONFIG][?FIELD=COLUMN&...]`, or a local path that `datasets` can load.

    `?text=sentence&label=gold` says which columns hold the fields of an example (`text`, `label`, or
    `question`, `choices`, `answer`); by default they have the fields' own names. Labels are a `ClassLabel`
    column, or whole numbers 0, 1, … that then name themselves. `test` is the split `test`, or
    `validation` where there is no `test`. Raises `TaskError` where the Hub cannot be reached, the data set
    does not exist, or its content does not fit.
    """
    path, config, columns = _parse_reference(reference)
    source = f"hf:{reference}"
    splits = _load(path, config, source)
    train, test = _split(splits, ("train",), source), _split(splits, ("test", "validation"), source)
    kind = kind_of({*columns, *train.column_names})
    columns = {field: columns.get(field, field) for field in FIELDS[kind]}
    for split in (train, test):
        _check_columns(split, columns, source)
    labels = _label_names(train, test, columns["label"], source) if kind == "classification" else ()

    def examples(split: Dataset) -> tuple[Example, ...]:
        rows = split.select_columns(list(columns.values())).to_list()
        renamed = ({field: row[column] for field, column in columns.items()} for row in rows)
        return parse_examples(enumerate(renamed), kind, len(labels), f"{source}, split {split.split}, row")

    name = Path(path).resolve().name if config is None else f"{Path(path).name}-{config}"
    return Task(name=name, kind=kind, labels=labels, train=examples(train), test=examples(test))


def _parse_reference(reference: str) -> tuple[str, str | None, dict[str, str]]:
    body, _, query = reference.partition("?")
    try:
        columns = dict(parse_qsl(query, strict_parsing=True)) if query else {}
    except ValueError as error:
        raise TaskError(f"hf:{reference} cannot be understood ({error}). Write {_USAGE}.") from error
    known = [field for fields in FIELDS.values() for field in fields]
    unknown = sorted(set(columns) - set(known))
    if unknown:
        raise TaskError(f"hf:{reference}: unknown field {unknown[0]!r}. The fields are {', '.join(known)}.")
    path, _, config = body.partition(":")
    if not path:
        raise TaskError(f"hf:{reference} names no data set. Write {_USAGE}.")
    local = Path(body).expanduser()
    return (str(local), None, columns) if local.exists() else (path, config or None, columns)


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


def _check_columns(split: Dataset, columns: dict[str, str], source: str) -> None:
    for field, column in columns.items():
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
