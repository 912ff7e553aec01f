"""The study of bits against error: the bound, the figures of a point, and the updates it is about."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from benchmarks.rate_distortion_study.compressors import compressors, int4_blocks, nf4_blocks
from benchmarks.rate_distortion_study.measure import (
    Point,
    gaussian_bits,
    normalised_error,
    point,
    shape,
)
from benchmarks.rate_distortion_study.report import of, verdict, worst
from benchmarks.rate_distortion_study.updates import Origin, Update, Updates, learnt, load, save
from fedkron.adapters import AdapterSpec, adapter_layout, adapter_state, attach
from fedkron.base import TaskModel, load_base
from fedkron.compression import codec, decode, encode
from fedkron.layout import AdapterLayout, ModuleLayout, TensorLayout, Vector, flatten, unflatten

ORIGIN = Origin("kron_lora", "trec", 1e-3, "first", 10)


def layout_of(*shapes: tuple[int, int]) -> AdapterLayout:
    factors = tuple(TensorLayout(f"factor{i}", shape) for i, shape in enumerate(shapes))
    return AdapterLayout("", (ModuleLayout("layer", "kron_lora", 1.0, (8, 8), factors),))


def gaussian(size: int) -> Vector:
    return np.random.default_rng(0).standard_normal(size, np.float32)


@pytest.mark.parametrize(
    ("error", "bits"), [(1.0, 0.0), (4.0, 0.0), (0.25, 1.0), (1 / 16, 2.0), (0.1, 1.660964), (2**-24, 12.0)]
)
def test_the_bound_at_known_errors(error: float, bits: float) -> None:
    assert gaussian_bits(error) == pytest.approx(bits, abs=1e-6)


def test_no_number_of_bits_is_enough_for_no_error() -> None:
    assert gaussian_bits(0.0) == math.inf


@given(st.floats(1e-9, 0.5))
def test_six_decibels_cost_a_bit(error: float) -> None:
    assert gaussian_bits(error * 10**-0.602059991) == pytest.approx(gaussian_bits(error) + 1, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(-4, 4, width=16), st.floats(-4, 4, width=16)), min_size=1, max_size=20))
def test_the_error_is_what_numpy_says(pairs: list[tuple[float, float]]) -> None:
    vector, decoded = np.array([(1.0, 0.0), *pairs], np.float32).T
    expected = np.linalg.norm(vector - decoded) ** 2 / np.linalg.norm(vector) ** 2
    assert normalised_error(vector, decoded) == pytest.approx(expected, rel=1e-5)


def test_moments_of_known_vectors() -> None:
    signs = shape(Update(ORIGIN, np.array([3, -3, -3, 3], np.float32)))
    assert (signs.parameters, signs.rms, signs.kurtosis) == (4, 3.0, 1.0)
    spike = shape(Update(ORIGIN, np.array([0, 0, 2, 0], np.float32)))
    assert (spike.rms, spike.kurtosis) == (1.0, 4.0)
    assert shape(Update(ORIGIN, gaussian(100_000))).kurtosis == pytest.approx(3, abs=0.1)


@pytest.mark.parametrize("name", ["fp16", "int8", "int4:channel", "ecsq", "sign"])
def test_a_point_is_about_the_payload_that_would_travel(name: str) -> None:
    layout = layout_of((4, 100), (7, 33))
    vector = gaussian(layout.size)
    blob = encode(unflatten(vector, layout), layout, codec(name), round=3)
    arrived = flatten(decode(blob, layout).update, layout)
    found = point(Update(ORIGIN, vector), layout, name, compressors()[name])
    assert found.bits == 8 * len(blob) / layout.size
    assert found.error == pytest.approx(np.sum((vector - arrived) ** 2) / np.sum(vector**2), rel=1e-4)
    assert found.gap == pytest.approx(found.bits - math.log2(found.error**-0.5))


def test_int4_by_block_size_is_the_codec_where_the_sizes_are_the_same() -> None:
    layout = layout_of((4, 100), (7, 33))
    update = Update(ORIGIN, gaussian(layout.size))
    found = {name: point(update, layout, "", compressors()[name]) for name in ("int4", int4_blocks(64))}
    assert found["int4"] == found[int4_blocks(64)]


@pytest.mark.parametrize("size", [64, 256])
def test_nf4_has_half_a_byte_a_value_and_a_float_a_block_and_sixteen_levels(size: int) -> None:
    layout = layout_of((16, 64))
    vector = gaussian(layout.size)
    count, decoded = compressors()[nf4_blocks(size)](vector, layout)
    assert count == 1024 // 2 + 4 * (1024 // size)
    peaks = np.abs(vector.reshape(-1, size)).max(axis=1, keepdims=True)
    assert len(np.unique(np.round(decoded.reshape(-1, size) / peaks, 4))) <= 16


def test_a_lossless_point_is_below_every_other() -> None:
    layout = layout_of((4, 100))
    exact = point(Update(ORIGIN, gaussian(400)), layout, "fp32", compressors()["fp32"])
    assert (exact.error, exact.gap) == (0, -math.inf)


def test_entropy_coded_scalar_quantization_is_a_quarter_bit_above_the_bound_at_high_rate() -> None:
    layout = layout_of((400, 500))
    update = Update(ORIGIN, gaussian(layout.size))
    gap = point(update, layout, "ecsq:4", compressors()["ecsq:4"]).gap
    assert gap == pytest.approx(0.5 * math.log2(math.pi * math.e / 6), abs=0.02)


def measured(gap: float, steps: int, compressor: str = "ecsq") -> Point:
    return Point(Origin("lora", "trec", 1e-3, "first", steps), compressor, 2 + gap, 1 / 16)


def test_the_goal_is_missed_where_one_operating_point_misses_it() -> None:
    others = [measured(1.0, 10, int4_blocks(size)) for size in (16, 32, 64, 128, 256)]
    reached = [measured(0.1, 1), measured(0.3, 10)]
    assert verdict([*reached, *others])[0].startswith("Goal reached: ecsq is within 0.35 bit")
    missed = [*reached, measured(0.4, 40)]
    assert "at 2 of 3 operating points" in verdict([*missed, *others])[0]
    assert worst(of([*missed, *others], compressor="ecsq")).origin.steps == 40


def test_what_was_learnt_after_each_step_adds_up_to_the_whole_training(tiny_bert: Path) -> None:
    model = TaskModel(attach(load_base(str(tiny_bert)).backbone, AdapterSpec(rank=2, d_a2=4)), 2)
    nn.init.normal_(model.head.weight)
    layout = adapter_layout(model.backbone, base="")
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    states = [flatten(adapter_state(model.backbone), layout)]
    ids = torch.ones(2, 5, dtype=torch.long)
    with learnt(model, layout, (1, 3)) as vectors:
        for _ in range(4):
            optimizer.zero_grad()
            model(ids, ids).square().sum().backward()
            optimizer.step()
            states.append(flatten(adapter_state(model.backbone), layout))
    assert list(vectors) == [1, 3]
    for steps, vector in vectors.items():
        np.testing.assert_array_equal(vector, states[steps] - states[0])
        assert vector.any()


def test_updates_come_back_from_a_file_as_they_were(tmp_path: Path) -> None:
    layout = layout_of((4, 25))
    other = Origin("kron_lora", "spam", 3e-4, "later", 1)
    before = Updates({"kron_lora": layout}, [Update(ORIGIN, gaussian(100)), Update(other, 2 * gaussian(100))])
    save(before, tmp_path / "updates.npz")
    after = load(tmp_path / "updates.npz")
    assert after.layouts == before.layouts
    assert [update.origin for update in after.updates] == [ORIGIN, other]
    for got, expected in zip(after.updates, before.updates, strict=True):
        np.testing.assert_array_equal(got.vector, expected.vector)
