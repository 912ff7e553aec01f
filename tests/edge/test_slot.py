"""Where everything lies in a slot: adapters put into it come out again."""

from dataclasses import replace

import numpy as np
import pytest
from edge_cases import BLOCK, ENCODINGS, KRON, decoded_state, random_state, slot_numbers
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkron.edge.slot import LayerSizes, SlotLayout, layer_sizes
from fedkron.errors import AdapterError, BundleError, ConfigError, ContractError
from fedkron.layout import AdapterLayout, ModuleLayout, TensorLayout

SIZES = st.integers(1, 5)


@st.composite
def modules(draw: st.DrawFn, path: str) -> ModuleLayout:
    rank, scale = draw(SIZES), draw(st.sampled_from([0.5, 1.0, 2.5]))
    if draw(st.booleans()):
        d_in, d_out = draw(SIZES), draw(SIZES)
        factors = TensorLayout("lora_A", (rank, d_in)), TensorLayout("lora_B", (d_out, rank))
        return ModuleLayout(path, "lora", scale, (d_out, d_in), factors)
    a1, a2, b1, b2 = (draw(SIZES) for _ in range(4))
    shapes = {"A": (a2, a1), "B1": (b2, rank), "B2": (rank, b1)}
    factors = tuple(TensorLayout(name, shape) for name, shape in shapes.items())
    return ModuleLayout(path, "kron_lora", scale, (a2 * b2, a1 * b1), factors)


@st.composite
def slots(draw: st.DrawFn) -> SlotLayout:
    """Layers of any kind and size, each alone or in a group with its like."""
    groups, found = [], []
    for number in range(draw(st.integers(1, 4))):
        first = draw(modules(f"layer.{number}.0"))
        paths = [f"layer.{number}.{i}" for i in range(draw(st.integers(1, 3)))]
        groups.append(tuple(paths))
        found += [replace(first, path=path) for path in paths]
    layout = AdapterLayout("base", tuple(draw(st.permutations(found))))
    return SlotLayout(layout, tuple(groups), draw(st.sampled_from(ENCODINGS)))


@settings(deadline=None)
@given(slots())
def test_an_adapter_comes_out_of_a_slot_as_it_went_in(slot: SlotLayout) -> None:
    state = random_state(slot.adapter)
    arrays = slot.pack(state)
    assert {name: (array.size, array.dtype.name) for name, array in arrays.items()} == slot.arrays
    found = decoded_state(arrays, slot.groups, slot.adapter, slot.encoding)
    assert found.keys() == state.keys()
    # Of the largest number in the slot; scales are 0.5 to 2.5.
    precision = {"fp32": 1e-7, "fp16": 1e-3, "int8": 0.51 / 127, "int4": 0.2}[slot.encoding]
    tolerance = precision * 2.5 / 0.5 * max(np.abs(values).max() for values in state.values())
    for name, values in state.items():
        exact = name.endswith(".A") and slot.encoding in ("int8", "int4")
        np.testing.assert_allclose(found[name], values, atol=1e-7 if exact else tolerance, rtol=1e-6)
    zeros = decoded_state(slot.zeros(), slot.groups, slot.adapter, slot.encoding)
    assert not any(values.any() for values in zeros.values())
    assert {name: (array.size, array.dtype.name) for name, array in slot.zeros().items()} == slot.arrays


@settings(deadline=None)
@given(slots())
def test_every_number_of_a_slot_is_read_once(slot: SlotLayout) -> None:
    """Two adapters that differ in one number have slots that do."""
    state = random_state(slot.adapter)
    fp32 = SlotLayout(slot.adapter, slot.groups, "fp32")
    assert fp32.coded_size + fp32.exact_size == slot.adapter.size
    before = fp32.pack(state)["slot"]
    for tensor in slot.adapter.tensors:
        changed = dict(state)
        changed[tensor.name] = state[tensor.name].copy()
        changed[tensor.name].flat[-1] += 1
        assert np.count_nonzero(fp32.pack(changed)["slot"] != before) == 1


def test_padding_fills_up_the_last_block_and_is_zero() -> None:
    slot = SlotLayout(AdapterLayout("base", (KRON,)), (("dense",),), "int4")
    arrays = slot.pack(random_state(slot.adapter))
    coded, exact = slot_numbers(arrays, "int4", slot.exact_size)
    assert (len(coded), slot.coded_size, len(exact)) == (BLOCK, 5 * 2 + 2 * 5, 6)
    assert not coded[slot.coded_size :].any()


def test_only_what_fits_has_the_same_hash() -> None:
    layout = AdapterLayout("base", (KRON, replace(KRON, path="other")))
    one = SlotLayout(layout, (("dense", "other"),), "int8")
    assert one.hash == SlotLayout(layout, (("dense", "other"),), "int8").hash
    different = [
        SlotLayout(layout, (("dense", "other"),), "int4"),
        SlotLayout(layout, (("dense",), ("other",)), "int8"),
        SlotLayout(layout, (("other", "dense"),), "int8"),
        SlotLayout(replace(layout, base="another"), (("dense", "other"),), "int8"),
    ]
    assert len({one.hash, *(slot.hash for slot in different)}) == 5


def test_sizes_are_those_of_the_factors() -> None:
    assert layer_sizes(KRON) == LayerSizes("kron_lora", rank=5, left=2, right=2, mixing=(2, 3))
    assert layer_sizes(KRON).width == 6
    factors = (TensorLayout("lora_A", (2, 4)), TensorLayout("lora_B", (6, 2)))
    lora = layer_sizes(replace(KRON, kind="lora", factors=factors))
    assert (lora, lora.width) == (LayerSizes("lora", 2, 4, 6, (1, 1)), 6)


@pytest.mark.parametrize(
    "module",
    [
        replace(KRON, kind="lokr"),
        replace(KRON, kind="lora"),
        replace(KRON, factors=KRON.factors[:2]),
        replace(KRON, factors=(*KRON.factors[:2], TensorLayout("B2", (4, 2)))),  # another rank
    ],
)
def test_factors_of_another_kind_are_refused(module: ModuleLayout) -> None:
    with pytest.raises(BundleError, match=f"'dense': a '{module.kind}' adapter with factors"):
        layer_sizes(module)


@pytest.mark.parametrize("groups", [(), (("dense",), ("dense",)), (("dense", "other"),), (("other",),)])
def test_groups_have_each_layer_once(groups: tuple[tuple[str, ...], ...]) -> None:
    with pytest.raises(ContractError, match="groups of this slot are not the layers"):
        SlotLayout(AdapterLayout("base", (KRON,)), groups, "fp32")


def test_an_unknown_encoding_is_refused() -> None:
    with pytest.raises(ConfigError, match="slot encoding 'bf16' is not known: choose fp32"):
        SlotLayout(AdapterLayout("base", (KRON,)), (("dense",),), "bf16")


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("factor", ["A", "B1", "B2"])
def test_numbers_that_are_not_finite_are_refused(encoding: str, factor: str) -> None:
    slot = SlotLayout(AdapterLayout("base", (KRON,)), (("dense",),), encoding)
    for bad in np.nan, np.inf, -np.inf:
        state = random_state(slot.adapter)
        state[f"dense.{factor}"][-1, 0] = bad
        with pytest.raises(AdapterError, match="not finite"):
            slot.pack(state)
