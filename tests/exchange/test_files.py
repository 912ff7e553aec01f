import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch_file

from fedkron.errors import AdapterError, ContractError, FedKronError
from fedkron.exchange import (
    AdapterFile,
    HeadFile,
    load_adapter,
    load_head,
    save_adapter,
    save_head,
    write_atomically,
)
from fedkron.layout import AdapterLayout, ModuleLayout, TensorLayout

patient = settings(deadline=None, max_examples=40)  # a busy machine is not a failure

MODULE = ModuleLayout(
    "encoder.0.dense",
    "kron_lora",
    4.0,
    (24, 10),
    (TensorLayout("A", (4, 2)), TensorLayout("B1", (6, 3)), TensorLayout("B2", (3, 5))),
)
DENSE = (TensorLayout("pre_classifier.bias", (2,)), TensorLayout("scalar", ()), TensorLayout("empty", (0, 3)))
LAYOUT = AdapterLayout("ab" * 32, (MODULE,), DENSE)
TENSOR = "encoder.0.dense.B1"
INFO = {"round": "3", "Größe": "α = 2\n", "aggregation": "merged"}


def adapter(seed: int = 0) -> AdapterFile:
    rng = np.random.default_rng(seed)
    state = {t.name: np.asarray(rng.standard_normal(t.shape), np.float32) for t in LAYOUT.tensors}
    return AdapterFile(state, LAYOUT, "sentence-transformers/all-MiniLM-L6-v2", dict(INFO))


def head(seed: int = 0) -> HeadFile:
    rng = np.random.default_rng(seed)
    weight, bias = rng.standard_normal((3, 8)).astype(np.float32), rng.standard_normal(3).astype(np.float32)
    return HeadFile(weight, bias, "wetter", "classification", ("schön", "mäßig", "übel"), LAYOUT.contract)


def same_adapter(one: AdapterFile, other: AdapterFile) -> bool:
    def rest(file: AdapterFile) -> AdapterFile:
        return replace(file, state={})

    same_names = one.state.keys() == other.state.keys()
    return (
        rest(one) == rest(other)
        and same_names
        and all(np.array_equal(one.state[n], other.state[n]) for n in one.state)
    )


def same_head(one: HeadFile, other: HeadFile) -> bool:
    texts = [(h.task, h.task_kind, h.labels, h.contract) for h in (one, other)]
    arrays = np.array_equal(one.weight, other.weight) and np.array_equal(one.bias, other.bias)
    return arrays and texts[0] == texts[1]


# What is written comes back.


@patient
@given(
    st.dictionaries(st.text(max_size=9), st.text(max_size=9), max_size=4),
    st.text(),
    st.integers(0, 2**32 - 1),
    st.fixed_dictionaries(
        {
            "spec": st.dictionaries(st.text(), st.none() | st.integers() | st.floats(allow_nan=False)),
            "lineage": st.lists(st.text(), max_size=3).map(tuple),
        }
    ),
)
def test_an_adapter_comes_back_bit_for_bit_with_all_its_texts(
    tmp_path_factory: pytest.TempPathFactory,
    info: dict[str, str],
    base_name: str,
    seed: int,
    rest: dict[str, Any],
) -> None:
    path = tmp_path_factory.mktemp("adapter") / "a.safetensors"
    written = replace(adapter(seed), info=info, base_name=base_name, **rest)
    save_adapter(path, written)
    assert same_adapter(load_adapter(path), written)


CHOICE = HeadFile(
    head().weight[:1], head().bias[:1], "trivia", "multiple_choice", (), contract=LAYOUT.contract
)


@pytest.mark.parametrize("written", [head(), replace(head(), labels=()), CHOICE])
def test_a_head_comes_back_bit_for_bit_with_all_its_texts(tmp_path: Path, written: HeadFile) -> None:
    save_head(tmp_path / "h", written)
    assert same_head(load_head(tmp_path / "h"), written)


def test_views_and_float64_are_written_as_contiguous_float32(tmp_path: Path) -> None:
    good = adapter()
    state = {name: array.astype(np.float64, order="F") for name, array in good.state.items()}
    save_adapter(tmp_path / "a", replace(good, state=state))
    assert same_adapter(load_adapter(tmp_path / "a"), good)


def test_values_in_info_that_are_not_texts_become_texts(tmp_path: Path) -> None:
    save_adapter(tmp_path / "a", replace(adapter(), info={"round": 3}))  # type: ignore[dict-item]
    assert load_adapter(tmp_path / "a").info == {"round": "3"}


def test_the_same_adapter_and_the_same_head_always_give_the_same_bytes(tmp_path: Path) -> None:
    adapters, heads = set(), set()
    for attempt in range(12):
        written = adapter()
        if attempt % 2:  # the order in dictionaries means nothing
            backwards = dict(reversed(written.state.items())), dict(reversed(written.info.items()))
            written = replace(written, state=backwards[0], info=backwards[1])
        save_adapter(tmp_path / "a", written)
        save_head(tmp_path / "h", head())
        adapters.add((tmp_path / "a").read_bytes())
        heads.add((tmp_path / "h").read_bytes())
    assert len(adapters) == len(heads) == 1


def test_the_files_are_as_specified(tmp_path: Path) -> None:
    save_adapter(tmp_path / "a", adapter())
    save_head(tmp_path / "h", head())
    tensors, metadata = opened(tmp_path / "a")
    assert {name: (array.dtype, array.shape) for name, array in tensors.items()} == {
        tensor.name: (np.dtype(np.float32), tensor.shape) for tensor in LAYOUT.tensors
    }
    assert metadata == {
        "format": "fedkron-adapter",
        "version": 2,
        "contract": LAYOUT.contract,
        "layout": json.loads(LAYOUT.to_json()),
        "base": "sentence-transformers/all-MiniLM-L6-v2",
        "info": INFO,
        "spec": {},
        "lineage": [],
    }
    tensors, metadata = opened(tmp_path / "h")
    assert {name: array.shape for name, array in tensors.items()} == {"weight": (3, 8), "bias": (3,)}
    assert metadata == {
        "format": "fedkron-head",
        "version": 1,
        "contract": LAYOUT.contract,
        "task": "wetter",
        "task_kind": "classification",
        "labels": ["schön", "mäßig", "übel"],
    }


# What is refused.


def opened(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Tensors and metadata, read by the specification alone."""
    with safe_open(path, framework="numpy") as file:
        assert list(file.metadata()) == ["fedkron"]
        return load_file(path), json.loads(file.metadata()["fedkron"])


REMOVED = object()


def rewrite(path: Path, metadata_changes: dict[str, Any], tensor_changes: dict[str, Any]) -> None:
    """Replace, add or remove entries of a good file."""
    tensors, metadata = opened(path)
    tensors, metadata = tensors | tensor_changes, metadata | metadata_changes
    save_file(
        {name: tensor for name, tensor in tensors.items() if tensor is not REMOVED},
        path,
        {"fedkron": json.dumps({key: value for key, value in metadata.items() if value is not REMOVED})},
    )


def altered_layout(**changes: Any) -> dict[str, Any]:  # noqa: ANN401
    return {"layout": json.loads(LAYOUT.to_json()) | changes}


def zeros(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return np.zeros(shape, dtype)


BOTH: list[Any] = [
    ({"format": REMOVED}, {}, "its format is 'not given'"),
    ({"format": "pt"}, {}, "its format is 'pt'"),
    ({"format": ["fedkron"]}, {}, "its format is"),
    ({"version": REMOVED}, {}, "metadata is damaged: KeyError"),
    ({"version": 9}, {}, "version is 9, known here is [12]: update fedkron"),
    ({"version": "1"}, {}, "version is '1', known here is [12]"),
    ({"contract": REMOVED}, {}, "metadata is damaged: KeyError"),
    ({"extra": "x"}, {}, "metadata extra is not as this version writes it"),
]
ADAPTERS = [
    *BOTH,
    ({"layout": REMOVED}, {}, "metadata is damaged: KeyError"),
    ({"base": REMOVED}, {}, "metadata is damaged: KeyError"),
    ({"base": None}, {}, "metadata base is not"),
    ({"version": 1}, {}, "version is 1, known here is 2: update fedkron"),
    ({"spec": REMOVED}, {}, "metadata is damaged: KeyError"),
    ({"spec": ["rank"]}, {}, "metadata is damaged"),
    ({"lineage": REMOVED}, {}, "metadata is damaged: KeyError"),
    ({"lineage": [1]}, {}, "metadata lineage is not"),
    ({"lineage": "ab"}, {}, "metadata lineage is not"),
    ({"info": REMOVED}, {}, "metadata is damaged: KeyError"),
    ({"info": {"round": 3}}, {}, "metadata info is not"),
    ({"info": ["round"]}, {}, "metadata is damaged"),
    ({}, {TENSOR: REMOVED}, f"'{TENSOR}' of the adapter's layout is missing"),
    ({}, {"other": zeros(6, 3)}, "'other' is not part of the adapter's layout"),
    ({}, {TENSOR: zeros(3, 6)}, r"has shape \[3, 6\], the layout says \[6, 3\]"),
    ({}, {TENSOR: zeros(6, 3, dtype=np.float64)}, f"'{TENSOR}' is F64, expected F32"),
    ({}, {TENSOR: zeros(6, 3, dtype=np.float16)}, f"'{TENSOR}' is F16, expected F32"),
    ({}, {TENSOR: zeros(6, 3, dtype=np.int32)}, f"'{TENSOR}' is I32, expected F32"),
    ({}, {TENSOR: zeros(6, 3) + np.float32("nan")}, f"'{TENSOR}' holds values that are not finite"),
    ({}, {TENSOR: zeros(6, 3) - np.float32("inf")}, f"'{TENSOR}' holds values that are not finite"),
]
HEADS = [
    *BOTH,
    ({"contract": None}, {}, "metadata contract is not"),
    ({"task": REMOVED}, {}, "metadata is damaged: KeyError"),
    ({"task": 7}, {}, "metadata task is not"),
    ({"task_kind": REMOVED}, {}, "metadata is damaged: KeyError"),
    ({"task_kind": "regression"}, {}, "kind 'regression' is neither"),
    ({"task_kind": ["classification"]}, {}, "metadata task_kind is not"),
    ({"task_kind": "multiple_choice"}, {}, "do not belong together in a head for multiple_choice"),
    ({"labels": REMOVED}, {}, "metadata is damaged: KeyError"),
    ({"labels": "abc"}, {}, "metadata labels is not"),
    ({"labels": [1, 2, 3]}, {}, "metadata labels is not"),
    ({"labels": None}, {}, "metadata is damaged"),
    ({"labels": ["a", "b"]}, {}, r"weight \[3, 8\], bias \[3\] and 2 labels do not belong"),
    ({}, {"bias": REMOVED}, "a head has tensors weight and bias, this has weight"),
    ({}, {"A": zeros(3)}, "a head has tensors weight and bias, this has A, bias, weight"),
    ({}, {"bias": zeros(2)}, r"weight \[3, 8\], bias \[2\]"),
    ({}, {"bias": zeros()}, r"weight \[3, 8\], bias \[\]"),
    ({}, {"bias": zeros(3, 1)}, r"weight \[3, 8\], bias \[3, 1\]"),
    ({}, {"weight": zeros(3)}, r"weight \[3\], bias \[3\]"),
    ({}, {"weight": zeros(3, 8, dtype=np.float64)}, "'weight' is F64, expected F32"),
    ({}, {"bias": np.float32([0, np.nan, 0])}, "'bias' holds values that are not finite"),
]


@pytest.mark.parametrize(("metadata", "tensors", "message"), ADAPTERS)
def test_an_adapter_file_that_is_not_as_specified_is_refused_by_name(
    tmp_path: Path, metadata: dict[str, Any], tensors: dict[str, Any], message: str
) -> None:
    path = tmp_path / "a.safetensors"
    save_adapter(path, adapter())
    rewrite(path, metadata, tensors)
    with pytest.raises(AdapterError, match=f"^{re.escape(str(path))}.*{message}"):
        load_adapter(path)


@pytest.mark.parametrize(("metadata", "tensors", "message"), HEADS)
def test_a_head_file_that_is_not_as_specified_is_refused_by_name(
    tmp_path: Path, metadata: dict[str, Any], tensors: dict[str, Any], message: str
) -> None:
    path = tmp_path / "h.safetensors"
    save_head(path, head())
    rewrite(path, metadata, tensors)
    with pytest.raises(AdapterError, match=f"^{re.escape(str(path))}.*{message}"):
        load_head(path)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"contract": "0" * 64}, "the contract does not match the layout: the file was altered"),
        ({"contract": None}, "the file was altered"),
        (altered_layout(base="cd" * 32), "the file was altered"),
        (altered_layout(modules=[]), "the file was altered"),
        (altered_layout(version=9), "layout version 9 is not known here"),
        (altered_layout(more=1), "not an adapter layout"),
        ({"layout": LAYOUT.to_json()}, "not an adapter layout"),
        ({"layout": None}, "not an adapter layout"),
    ],
)
def test_a_layout_that_was_altered_breaks_the_contract(
    tmp_path: Path, metadata: dict[str, Any], message: str
) -> None:
    save_adapter(tmp_path / "a", adapter())
    rewrite(tmp_path / "a", metadata, {})
    with pytest.raises(ContractError, match=f"^{re.escape(str(tmp_path / 'a'))}.*{message}"):
        load_adapter(tmp_path / "a")


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {},
        {"format": "pt"},
        {"fedkron": ""},
        {"fedkron": "null"},
        {"fedkron": "[]"},
        {"fedkron": "{}"},
        {"fedkron": "[" * 100_000},
        {"fedkron": "1" * 5000},
    ],
)
def test_a_safetensors_file_of_somebody_else_is_refused(
    tmp_path: Path, metadata: dict[str, str] | None
) -> None:
    save_file({"weight": np.zeros((3, 8), np.float32)}, tmp_path / "x", metadata)
    for load in (load_adapter, load_head):
        with pytest.raises(AdapterError, match=re.escape(str(tmp_path / "x"))):
            load(tmp_path / "x")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.bool])
def test_a_dtype_that_numpy_may_not_even_have_is_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    save_head(tmp_path / "h", head())
    metadata = {"fedkron": json.dumps(opened(tmp_path / "h")[1])}
    save_torch_file({"weight": torch.zeros(3, 8).to(dtype), "bias": torch.zeros(3)}, tmp_path / "h", metadata)
    with pytest.raises(AdapterError, match=r"'weight' is \w+, expected F32"):
        load_head(tmp_path / "h")


def test_an_adapter_is_no_head_and_a_head_no_adapter(tmp_path: Path) -> None:
    save_adapter(tmp_path / "a", adapter())
    save_head(tmp_path / "h", head())
    with pytest.raises(AdapterError, match=r"not a fedkron-head file \(its format is 'fedkron-adapter'\)"):
        load_head(tmp_path / "a")
    with pytest.raises(AdapterError, match=r"not a fedkron-adapter file \(its format is 'fedkron-head'\)"):
        load_adapter(tmp_path / "h")


def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    save_adapter(tmp_path / "a", adapter())
    content = (tmp_path / "a").read_bytes()
    for end in [0, 1, 7, 8, 9, *range(10, len(content), 37), len(content) - 1]:
        (tmp_path / "a").write_bytes(content[:end])
        with pytest.raises(AdapterError, match="is not a safetensors file"):
            load_adapter(tmp_path / "a")


@settings(patient, max_examples=150)
@given(data=st.data())
def test_a_file_with_a_damaged_byte_raises_nothing_but_our_errors_or_is_whole(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "a"
    save_adapter(path, adapter())
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        loaded = load_adapter(path)
    except FedKronError as error:
        assert isinstance(error, AdapterError | ContractError)  # noqa: PT017
    else:
        assert loaded.layout == LAYOUT
        assert {name: array.shape for name, array in loaded.state.items()} == {
            tensor.name: tensor.shape for tensor in LAYOUT.tensors
        }


def test_what_is_not_a_file_is_refused_by_name(tmp_path: Path) -> None:
    for load in (load_adapter, load_head):
        with pytest.raises(AdapterError, match=re.escape(f"{tmp_path / 'none'} does not exist")):
            load(tmp_path / "none")
        with pytest.raises(AdapterError, match=re.escape(str(tmp_path))):
            load(tmp_path)


# What is not written.


def without_a_tensor(good: AdapterFile) -> AdapterFile:
    return replace(good, state={name: array for name, array in good.state.items() if name != TENSOR})


def with_another_shape(good: AdapterFile) -> AdapterFile:
    return replace(good, state=good.state | {TENSOR: good.state[TENSOR].T})


def with_nan(good: AdapterFile) -> AdapterFile:
    return replace(good, state=good.state | {TENSOR: np.full((6, 3), np.nan, np.float32)})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without_a_tensor, "is missing"),
        (with_another_shape, r"has shape \[3, 6\]"),
        (with_nan, "holds values that are not finite"),
    ],
)
def test_an_adapter_that_could_not_be_read_back_is_not_written_and_the_old_file_stays(
    tmp_path: Path, spoil: Callable[[AdapterFile], AdapterFile], message: str
) -> None:
    path = tmp_path / "a"
    save_adapter(path, adapter())
    before = path.read_bytes()
    with pytest.raises(AdapterError, match=message):
        save_adapter(path, spoil(adapter(seed=1)))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "spoilt",
    [
        replace(head(1), labels=("a", "b")),
        replace(head(1), bias=np.zeros(2, np.float32)),
        replace(head(1), weight=np.zeros(3, np.float32)),
        replace(head(1), bias=np.zeros((), np.float32)),
        replace(head(1), task_kind="regression"),
        replace(head(1), task_kind="multiple_choice", labels=()),
        replace(head(1), bias=np.array([0, np.inf, 0], np.float32)),
    ],
)
def test_a_head_that_could_not_be_read_back_is_not_written_and_the_old_file_stays(
    tmp_path: Path, spoilt: HeadFile
) -> None:
    path = tmp_path / "h"
    save_head(path, head())
    before = path.read_bytes()
    with pytest.raises(AdapterError):
        save_head(path, spoilt)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_half_way_leaves_the_old_content_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").write_text("precious")
    with pytest.raises(OSError, match="folder"):  # a file cannot take the place of a folder
        write_atomically(path, b"new")
    assert (path / "old").read_text() == "precious"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_write_leaves_the_old_content_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with pytest.raises(TypeError):
        write_atomically(path, "text")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_written_file_makes_its_folder_and_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    write_atomically(tmp_path / "new" / "folder" / "file", b"content")
    assert (tmp_path / "new" / "folder" / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert (tmp_path / "new" / "folder" / "file").read_bytes() == b"content"


def test_a_reader_that_has_the_old_file_open_keeps_seeing_the_old_content(tmp_path: Path) -> None:
    write_atomically(tmp_path / "file", b"old content")
    with (tmp_path / "file").open("rb") as reader:
        start = reader.read(3)
        write_atomically(tmp_path / "file", b"new")
        assert start + reader.read() == b"old content"
    assert (tmp_path / "file").read_bytes() == b"new"
