import copy
import hashlib
import json
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedkron.adapters import AdapterSpec, adapter_layout, attach
from fedkron.errors import AdapterError, ContractError
from fedkron.layout import (
    HEAD_BIAS,
    HEAD_WEIGHT,
    AdapterLayout,
    ModuleLayout,
    State,
    TensorLayout,
    flatten,
    unflatten,
)

patient = settings(deadline=None, max_examples=100)  # a busy machine is not a failure

KRON = ModuleLayout(
    "encoder.0.dense",
    "kron_lora",
    4.0,
    (24, 10),
    (TensorLayout("A", (4, 2)), TensorLayout("B1", (6, 3)), TensorLayout("B2", (3, 5))),
)
LORA = ModuleLayout(
    "größe", "lora", 2.5, (9, 7), (TensorLayout("lora_A", (3, 7)), TensorLayout("lora_B", (9, 3)))
)
LAYOUT = AdapterLayout("ab" * 32, (KRON, LORA), (TensorLayout("classifier.bias", (2,)),))

shapes = st.lists(st.integers(0, 6), max_size=3).map(tuple)


@st.composite
def tensors(draw: st.DrawFn) -> tuple[TensorLayout, ...]:
    names = draw(st.lists(st.text(max_size=8), max_size=4, unique=True))
    return tuple(TensorLayout(name, draw(shapes)) for name in names)


@st.composite
def layouts(draw: st.DrawFn) -> AdapterLayout:
    """Layouts of any kind, with scalars, empty tensors, and any names."""
    paths = draw(st.lists(st.text("abc.é", max_size=6), max_size=3, unique=True))
    scales = st.floats(allow_nan=False, allow_infinity=False)
    sizes = st.tuples(st.integers(1, 2**40), st.integers(1, 2**40))
    modules = tuple(
        ModuleLayout(f"{index}.{path}", draw(st.text(max_size=9)), draw(scales), draw(sizes), draw(tensors()))
        for index, path in enumerate(paths)
    )
    dense = tuple(replace(tensor, name=f"dense {tensor.name}") for tensor in draw(tensors()))
    return AdapterLayout(draw(st.text(max_size=9)), modules, dense)


def random_state(layout: AdapterLayout, seed: int = 0) -> State:
    rng = np.random.default_rng(seed)
    return {t.name: rng.standard_normal(t.shape).astype(np.float32) for t in layout.tensors}


# Names, sizes, kinds.


def test_tensors_are_the_factors_module_by_module_then_the_dense_ones() -> None:
    assert [(tensor.name, tensor.shape, tensor.size) for tensor in LAYOUT.tensors] == [
        ("encoder.0.dense.A", (4, 2), 8),
        ("encoder.0.dense.B1", (6, 3), 18),
        ("encoder.0.dense.B2", (3, 5), 15),
        ("größe.lora_A", (3, 7), 21),
        ("größe.lora_B", (9, 3), 27),
        ("classifier.bias", (2,), 2),
    ]
    assert LAYOUT.size == 8 + 18 + 15 + 21 + 27 + 2
    assert TensorLayout("scalar", ()).size == 1


@pytest.mark.parametrize("rank", [1, 8])
def test_lora_size_is_that_of_lora_attached_to_the_same_layers(rank: int) -> None:
    def model() -> nn.Module:
        return nn.ModuleDict({"a": nn.Linear(8, 12), "b": nn.Linear(12, 20), "top": nn.Linear(20, 3)})

    def layout(spec: AdapterSpec) -> AdapterLayout:
        with torch.device("meta"):
            return adapter_layout(attach(model(), spec), "")

    kron = layout(AdapterSpec(d_a2=4, rank=3, full=("top",)))
    lora = layout(AdapterSpec("lora", rank=rank, full=("top",)))
    assert kron.lora_size(rank) == lora.lora_size(rank) == lora.size
    assert kron.size != lora.size


def test_a_shared_head_comes_last_and_is_in_the_contract() -> None:
    shared = LAYOUT.with_head(5, 16)
    assert shared.has_head
    assert not LAYOUT.has_head
    assert shared.tensors == (
        *LAYOUT.tensors,
        TensorLayout(HEAD_WEIGHT, (5, 16)),
        TensorLayout(HEAD_BIAS, (5,)),
    )
    assert shared.size == LAYOUT.size + 5 * 17
    assert shared.lora_size(4) == LAYOUT.lora_size(4) + 5 * 17
    assert len({LAYOUT.contract, shared.contract, LAYOUT.with_head(6, 16).contract}) == 3


def test_two_tensors_of_one_name_are_refused() -> None:
    with pytest.raises(ContractError, match=r"two tensors have the name 'head\.weight'"):
        LAYOUT.with_head(5, 16).with_head(5, 16)
    with pytest.raises(ContractError, match=r"two tensors have the name 'größe\.lora_A'"):
        AdapterLayout("", (LORA, LORA))


def test_a_layout_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        LAYOUT.base = "cd"  # type: ignore[misc]


def test_arrays_without_a_base_are_dense_in_the_order_given() -> None:
    layout = AdapterLayout.of_arrays({"b": np.zeros((2, 3)), "a": np.zeros(())})
    assert layout == AdapterLayout("", (), (TensorLayout("b", (2, 3)), TensorLayout("a", ())))


# One vector.


@patient
@given(layouts(), st.integers(0, 2**32 - 1))
def test_a_state_goes_through_one_vector_and_comes_back_bit_for_bit(layout: AdapterLayout, seed: int) -> None:
    state = random_state(layout, seed)
    vector = flatten(dict(reversed(state.items())), layout)
    assert (vector.dtype, vector.shape) == (np.float32, (layout.size,))
    back = unflatten(vector, layout)
    assert list(back) == [tensor.name for tensor in layout.tensors]
    for name, array in state.items():
        assert back[name].shape == array.shape
        assert np.array_equal(back[name], array)


def test_a_vector_holds_the_tensors_row_by_row_in_wire_order() -> None:
    layout = AdapterLayout(
        "", (), (TensorLayout("z", (2, 2)), TensorLayout("a", ()), TensorLayout("m", (3,)))
    )
    state = {
        "a": np.float64(5).reshape(()),
        "m": np.arange(16, dtype=np.float32)[6:12:2],
        "z": np.array([[1, 3], [2, 4]], np.float32).T,
    }
    assert flatten(state, layout).tolist() == [1, 2, 3, 4, 5, 6, 8, 10]


def test_flattening_copies_and_unflattening_does_not() -> None:
    state = random_state(LAYOUT)
    vector = flatten(state, LAYOUT)
    vector[:] = 7
    assert not any((array == 7).any() for array in state.values())
    assert all(np.shares_memory(array, vector) for array in unflatten(vector, LAYOUT).values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"largest": np.zeros(1)}, r"'largest' is not part of the adapter's layout \(1 such\)"),
        ({"größe.lora_A": None}, r"'größe\.lora_A' of the adapter's layout is missing \(1 such\)"),
        ({"größe.lora_A": np.zeros((7, 3))}, r"has shape \[7, 3\], the layout says \[3, 7\]"),
        ({"größe.lora_A": np.zeros(21)}, r"has shape \[21\], the layout says \[3, 7\]"),
        ({"classifier.bias": np.zeros(())}, r"has shape \[\], the layout says \[2\]"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    state = {name: array for name, array in (random_state(LAYOUT) | changes).items() if array is not None}
    with pytest.raises(AdapterError, match=message):
        flatten(state, LAYOUT)


def test_a_layout_of_absurd_size_is_refused_before_anything_is_allocated() -> None:
    huge = AdapterLayout("", (), (TensorLayout("small", (2,)), TensorLayout("huge", (2**40, 2**40))))
    with pytest.raises(AdapterError, match="'huge' has shape"):
        flatten({"small": np.zeros(2), "huge": np.zeros((1, 1))}, huge)


@pytest.mark.parametrize("shape", [(90,), (92,), (), (1, 91)])
def test_a_vector_of_another_length_is_refused(shape: tuple[int, ...]) -> None:
    assert LAYOUT.size == 91
    with pytest.raises(AdapterError, match=r"the layout needs \[91\]"):
        unflatten(np.zeros(shape, np.float32), LAYOUT)


# JSON and the contract.


def canonical(content: object) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"))


@patient
@given(layouts())
def test_a_layout_comes_back_from_its_json_with_the_same_contract(layout: AdapterLayout) -> None:
    text = layout.to_json()
    assert text.isascii()
    for spelling in (text, text.encode(), json.dumps(json.loads(text), indent=2, ensure_ascii=False)):
        back = AdapterLayout.from_json(spelling)
        assert back == layout
        assert back.to_json() == text
        assert back.contract == layout.contract


def test_the_json_is_canonical_as_specified_and_its_hash_is_the_contract() -> None:
    content = {
        "version": 2,
        "base": "ab" * 32,
        "modules": [
            {
                "path": module.path,
                "kind": module.kind,
                "scale": module.scale,
                "weight_shape": list(module.weight_shape),
                "factors": [{"name": f.name, "shape": list(f.shape)} for f in module.factors],
            }
            for module in (KRON, LORA)
        ],
        "dense": [{"name": "classifier.bias", "shape": [2]}],
    }
    assert LAYOUT.to_json() == canonical(content)
    assert LAYOUT.contract == hashlib.sha256(canonical(content).encode("ascii")).hexdigest()


def test_equal_layouts_have_equal_contracts_even_if_the_scale_is_an_integer() -> None:
    again = AdapterLayout("ab" * 32, (replace(KRON, scale=4), LORA), LAYOUT.dense)
    assert again == LAYOUT
    assert again.contract == LAYOUT.contract


@pytest.mark.parametrize(
    "other",
    [
        replace(LAYOUT, base="ac" * 32),
        replace(LAYOUT, dense=()),
        replace(LAYOUT, modules=(LORA, KRON)),
        replace(LAYOUT, modules=(replace(KRON, scale=4.000001), LORA)),
        replace(LAYOUT, modules=(replace(KRON, path="encoder.1.dense"), LORA)),
        replace(LAYOUT, modules=(replace(KRON, kind="lora"), LORA)),
        replace(LAYOUT, modules=(replace(KRON, weight_shape=(10, 24)), LORA)),
        replace(LAYOUT, modules=(replace(KRON, factors=KRON.factors[::-1]), LORA)),
        replace(LAYOUT, dense=(TensorLayout("classifier.bias", (2, 1)),)),
    ],
)
def test_whatever_differs_in_a_layout_changes_the_contract(other: AdapterLayout) -> None:
    assert other.contract != LAYOUT.contract


def altered(change: Callable[[Any], object]) -> str:
    content = json.loads(LAYOUT.to_json())
    change(content)
    return json.dumps(content)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not an adapter layout"),
        ("{", "not an adapter layout"),
        ("[]", "not an adapter layout"),
        ("null", "not an adapter layout"),
        ("{}", "not an adapter layout: KeyError"),
        (b"\xff\xfe", "not an adapter layout"),
        ("[" * 100_000, "not an adapter layout"),
        ("1" * 5000, "not an adapter layout"),
        (altered(lambda c: c.update(version=1)), "version 1 is not known here .*update fedkron"),
        (altered(lambda c: c.update(version=None)), "version None is not known here"),
        (altered(lambda c: c.update(version=2.0)), "keys or types"),
        (altered(lambda c: c.update(comment="")), "keys or types"),
        (altered(lambda c: c.update(base=5)), "keys or types"),
        (altered(lambda c: c.update(modules="")), "keys or types"),
        (altered(lambda c: c.update(modules=[[]])), "not an adapter layout"),
        (altered(lambda c: c.pop("dense")), "not an adapter layout: KeyError"),
        (altered(lambda c: c["modules"][0].update(scale="4.0")), "keys or types"),
        (altered(lambda c: c["modules"][0].update(scale="four")), "not an adapter layout"),
        (altered(lambda c: c["modules"][0].update(scale=float("nan"))), "a scale is nan"),
        (altered(lambda c: c["modules"][0].update(scale=float("-inf"))), "a scale is -inf"),
        (altered(lambda c: c["modules"][0].update(scale=10**400)), "not an adapter layout"),
        (altered(lambda c: c["modules"][0].update(rank=3)), "keys or types"),
        (altered(lambda c: c["modules"][0].update(weight_shape=[24])), "not an adapter layout"),
        (altered(lambda c: c["modules"][0].update(weight_shape=[24, 10, 1])), "not an adapter layout"),
        (altered(lambda c: c["modules"][0].update(weight_shape=[24, 0])), r"weight has shape \[24, 0\]"),
        (altered(lambda c: c["modules"][0].update(weight_shape=[24.0, 10])), "keys or types"),
        (altered(lambda c: c["modules"][0].pop("weight_shape")), "not an adapter layout: KeyError"),
        (altered(lambda c: c["modules"].append(c["modules"][0])), "two tensors have the name"),
        (altered(lambda c: c["dense"][0].update(shape=[2, -1])), r"'classifier.bias' has shape \[2, -1\]"),
        (altered(lambda c: c["dense"][0].update(shape=[1] * 33)), r"'classifier.bias' has shape \[1, 1"),
        (
            altered(lambda c: c["dense"][0].update(shape=[2**32, 0])),
            r"'classifier.bias' has shape \[4294967296",
        ),
        (
            altered(lambda c: c["dense"][0].update(shape=[2**16, 2**16])),
            "its tensors have 4294967296 elements",
        ),
        (altered(lambda c: c["dense"][0].update(shape=[2.0])), "keys or types"),
        (altered(lambda c: c["dense"][0].update(shape=[True])), "keys or types"),
        (altered(lambda c: c["dense"][0].update(shape="22")), "keys or types"),
        (altered(lambda c: c["dense"][0].update(shape=2)), "not an adapter layout"),
        (altered(lambda c: c["dense"][0].update(shape=[float("inf")])), "not an adapter layout"),
        (altered(lambda c: c["dense"][0].update(name=None)), "keys or types"),
    ],
)
def test_json_that_is_not_a_layout_of_our_version_is_refused(text: str | bytes, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        AdapterLayout.from_json(text)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def mutants(draw: st.DrawFn) -> Any:  # noqa: ANN401
    """The content of a good layout with one to three places replaced, removed or added."""
    content = copy.deepcopy(json.loads(LAYOUT.to_json()))
    for _ in range(draw(st.integers(1, 3))):
        node, depth = content, draw(st.integers(0, 5))
        while True:
            places = list(node) if isinstance(node, dict) else list(range(len(node)))
            place = draw(st.sampled_from(places)) if places else None
            if place is None or not depth or not isinstance(node[place], dict | list):
                break
            node, depth = node[place], depth - 1
        match draw(st.sampled_from(("replace", "remove", "add"))), node:
            case "remove", _ if place is not None:
                del node[place]
            case "add", dict():
                node[draw(st.text(max_size=4))] = draw(anything)
            case "add", list():
                node.append(draw(anything))
            case _ if place is not None:
                node[place] = draw(anything)
    return content


@settings(patient, max_examples=400)
@given(mutants())
def test_a_mutated_layout_is_refused_as_such_or_read_without_losing_anything(content: Any) -> None:  # noqa: ANN401
    try:
        layout = AdapterLayout.from_json(json.dumps(content))
    except ContractError:
        return
    assert layout.to_json() == canonical(content)
    assert all(n >= 0 for tensor in layout.tensors for n in tensor.shape)


@settings(patient, max_examples=200)
@given(st.binary(max_size=60) | st.text(max_size=60) | anything.map(json.dumps))
def test_text_that_is_no_layout_raises_nothing_but_a_contract_error(text: str | bytes) -> None:
    with pytest.raises(ContractError):
        AdapterLayout.from_json(text)


# ------------------------------------------------------------------ parts and other sizes


def state_of(layout: AdapterLayout) -> dict[str, np.ndarray]:
    return {tensor.name: np.zeros(tensor.shape, np.float32) for tensor in layout.tensors}


def test_layout_of_a_whole_adapter_is_its_own() -> None:
    assert LAYOUT.of_state(state_of(LAYOUT)) == LAYOUT
    assert LAYOUT.of_state(state_of(LAYOUT)).contract == LAYOUT.contract


def test_layout_of_a_part_or_of_another_size_keeps_layers_scales_and_order() -> None:
    factor = LAYOUT.modules[0].factors[0].name
    names = [
        module.tensor_name(factor)
        for module in LAYOUT.modules
        if any(f.name == factor for f in module.factors)
    ]
    part = LAYOUT.of_state({name: state_of(LAYOUT)[name] for name in reversed(names)})
    assert [tensor.name for tensor in part.tensors] == names
    assert part.base == LAYOUT.base
    assert part.contract != LAYOUT.contract
    assert all(module.scale in {m.scale for m in LAYOUT.modules} for module in part.modules)
    larger = {name: np.zeros((7,) * values.ndim, np.float32) for name, values in state_of(LAYOUT).items()}
    other = LAYOUT.of_state(larger)
    assert [t.name for t in other.tensors] == [t.name for t in LAYOUT.tensors]
    assert all(set(t.shape) <= {7} for t in other.tensors)


def test_layout_of_a_state_refuses_what_is_not_part_of_it() -> None:
    state = state_of(LAYOUT)
    with pytest.raises(AdapterError, match="'stranger' is not part of the adapter's layout"):
        LAYOUT.of_state(state | {"stranger": np.zeros(3, np.float32)})
    name = LAYOUT.tensors[0].name
    with pytest.raises(AdapterError, match=r"has shape \[1, 1, 1, 1\], the layout says"):
        LAYOUT.of_state({name: np.zeros((1, 1, 1, 1), np.float32)})
