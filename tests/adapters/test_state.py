from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from adapter_cases import SPECS, randomise
from torch import nn

from fedkron.adapters import (
    AdapterSpec,
    adapter_layout,
    adapter_state,
    attach,
    count_parameters,
    detach,
    load_adapter_state,
)
from fedkron.errors import AdapterError
from fedkron.layout import State, flatten, unflatten

each_kind = pytest.mark.parametrize("kind", SPECS)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(8, 12)
        self.out = nn.Linear(12, 8)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.b = Block()
        self.a = Block()
        self.classifier = nn.Linear(8, 3)


def adapted(kind: str = "kron_lora", seed: int = 0, **changes: object) -> Net:
    torch.manual_seed(0)
    model = attach(Net(), replace(SPECS[kind], full=("classifier",), **changes))
    randomise(model, seed)
    return model


def weights(model: nn.Module) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}


def test_a_layout_lists_factors_in_model_order_by_path_then_what_is_trained_in_full() -> None:
    layout = adapter_layout(adapted(), base="ab" * 32)
    assert layout.base == "ab" * 32
    assert [(tensor.name, tensor.shape) for tensor in layout.tensors] == [
        ("b.dense.A", (4, 2)),
        ("b.dense.B1", (3, 3)),
        ("b.dense.B2", (3, 4)),
        ("b.out.A", (4, 2)),
        ("b.out.B1", (2, 3)),
        ("b.out.B2", (3, 6)),
        ("a.dense.A", (4, 2)),
        ("a.dense.B1", (3, 3)),
        ("a.dense.B2", (3, 4)),
        ("a.out.A", (4, 2)),
        ("a.out.B1", (2, 3)),
        ("a.out.B2", (3, 6)),
        ("classifier.weight", (3, 8)),
        ("classifier.bias", (3,)),
    ]
    assert [(m.path, m.kind, m.scale) for m in layout.modules] == [
        (path, "kron_lora", 7 / 3) for path in ("b.dense", "b.out", "a.dense", "a.out")
    ]


def test_a_layout_has_the_factors_of_lora_named_as_in_peft() -> None:
    module = adapter_layout(adapted("lora"), base="").modules[0]
    assert [(f.name, f.shape) for f in module.factors] == [("lora_A", (3, 8)), ("lora_B", (12, 3))]


@each_kind
def test_equal_models_have_equal_contracts_whatever_their_values(kind: str) -> None:
    one, other = adapted(kind, seed=1), adapted(kind, seed=2)
    assert adapter_layout(one, "ab").contract == adapter_layout(other, "ab").contract


@pytest.mark.parametrize(
    "changes",
    [{"rank": 2}, {"alpha": 8.0}, {"d_a1": 4}, {"d_a2": 2}, {"targets": ("*.dense",)}, {"full": ()}],
)
def test_another_base_shape_scale_or_layer_makes_another_contract(changes: dict[str, object]) -> None:
    layout = adapter_layout(adapted(), "ab")
    same = replace(SPECS["kron_lora"], full=("classifier",), targets=("?.*",))
    assert adapter_layout(attach(Net(), same), "ab").contract == layout.contract
    assert adapter_layout(attach(Net(), replace(same, **changes)), "ab").contract != layout.contract
    assert adapter_layout(attach(Net(), same), "ac").contract != layout.contract


@each_kind
def test_the_state_of_one_model_loads_into_another_and_comes_out_bit_for_bit(kind: str) -> None:
    source, target = adapted(kind, seed=1), adapted(kind, seed=2)
    state = adapter_state(source)
    assert list(state) == [tensor.name for tensor in adapter_layout(source, "").tensors]
    assert {array.dtype for array in state.values()} == {np.dtype(np.float32)}
    assert weights(target) != weights(source)
    load_adapter_state(target, state)
    assert weights(target) == weights(source)
    loaded = adapter_state(target)
    assert all(np.array_equal(loaded[name], array) for name, array in state.items())


def test_a_state_is_a_copy_and_the_model_does_not_keep_the_one_it_loaded() -> None:
    model = adapted()
    state = adapter_state(model)
    before = weights(model)
    for array in state.values():
        np.add(array, 1, out=array)
    assert weights(model) == before
    load_adapter_state(model, state)
    loaded = weights(model)
    for array in state.values():
        np.add(array, 1, out=array)
    assert weights(model) == loaded != before


def test_read_only_views_in_any_order_load_too() -> None:
    source, target = adapted(seed=1), adapted(seed=2)
    layout = adapter_layout(source, "")
    vector = flatten(adapter_state(source), layout)
    vector.flags.writeable = False
    load_adapter_state(target, dict(reversed(unflatten(vector, layout).items())))
    assert weights(target) == weights(source)


def test_loading_keeps_the_factors_trainable_and_in_their_place() -> None:
    model = adapted()
    parameters = [(name, id(p), p.requires_grad) for name, p in model.named_parameters()]
    load_adapter_state(model, adapter_state(adapted(seed=3)))
    assert [(name, id(p), p.requires_grad) for name, p in model.named_parameters()] == parameters


def missing(state: State) -> None:
    del state["a.out.B2"]


def unknown(state: State) -> None:
    state["a.out.B3"] = np.zeros(2, np.float32)


def transposed(state: State) -> None:
    state["a.out.B2"] = state["a.out.B2"].T


def nan(state: State) -> None:
    state["classifier.bias"][2] = np.nan


def infinite(state: State) -> None:
    state["a.out.A"][0, 0] = -np.inf


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (missing, r"'a\.out\.B2' .* missing"),
        (unknown, r"'a\.out\.B3' is not part of the adapter"),
        (transposed, r"'a\.out\.B2' has shape \[6, 3\], the layout says \[3, 6\]"),
        (nan, r"'classifier\.bias' holds values that are not finite"),
        (infinite, r"'a\.out\.A' holds values that are not finite"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_nothing_of_it_is_loaded(
    damage: Callable[[State], None], message: str
) -> None:
    model = adapted()
    before = weights(model)
    state = adapter_state(adapted(seed=5))
    damage(state)
    with pytest.raises(AdapterError, match=message):
        load_adapter_state(model, state)
    assert weights(model) == before


@each_kind
def test_the_number_of_parameters_is_that_of_the_trained_elements(kind: str) -> None:
    model = adapted(kind)
    assert count_parameters(model) == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert count_parameters(model) == sum(array.size for array in adapter_state(model).values())


def test_a_model_without_adapter_has_neither_layout_nor_state() -> None:
    bare = detach(adapted())
    for use in (adapter_state, count_parameters, lambda model: adapter_layout(model, "")):
        with pytest.raises(AdapterError, match="call attach"):
            use(bare)


def test_the_factors_of_a_half_precision_base_travel_as_float32_without_loss() -> None:
    torch.manual_seed(0)
    model = attach(Net().bfloat16(), AdapterSpec("lora", rank=2, targets=("?.*",)))
    randomise(model)
    state = adapter_state(model)
    other = attach(Net().bfloat16(), AdapterSpec("lora", rank=2, targets=("?.*",)))
    load_adapter_state(other, state)
    loaded = adapter_state(other)
    assert all(np.array_equal(loaded[name], array) for name, array in state.items())
    assert any(
        (array != torch.from_numpy(array).bfloat16().float().numpy()).any() for array in state.values()
    )
