"""The first nodes of a graph with a slot: they take it apart into the matrices that the layers multiply
with.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from fedkron.edge.graph import GraphBuilder, TensorProto, numpy_helper
from fedkron.edge.slot import SLOT, SLOT_FLOATS, SlotLayout
from fedkron.edge.slot_encoding import BLOCK, ENCODINGS


@dataclass(frozen=True)
class SlotMatrices:
    """Names of the slot's matrices, (rows, ·, ·) each: left (d_left, layers·r) and mixing by the group's
    first layer, right by layer.
    """

    left: dict[str, str] = field(default_factory=dict)
    right: dict[str, str] = field(default_factory=dict)
    mixing: dict[str, str] = field(default_factory=dict)


def read_slot(graph: GraphBuilder, slot: SlotLayout) -> SlotMatrices:
    """Take the slot apart, as `fedkron.edge.slot` has put it together."""
    coded, exact = _decoded(graph, slot)
    shapes = slot.coded
    rest = _float_sizes(slot)[0] * BLOCK - slot.coded_size if SLOT_FLOATS in slot.arrays else slot.exact_size
    vectors = graph.split(coded, [a * b for a, b in shapes] + [rest] * (rest > 0), axis=1)
    matrices = (graph.reshape(v, [0, a, b]) for v, (a, b) in zip(vectors[: len(shapes)], shapes, strict=True))
    weights = SlotMatrices()
    for group in slot.groups:
        # ONNX Runtime fuses this into the product.
        weights.left[group[0]] = graph.add("Transpose", next(matrices), perm=[0, 2, 1])
        weights.right.update((path, next(matrices)) for path in group)
    if slot.mixings:
        weights.mixing.update(_mixing_matrices(graph, slot, exact or vectors[-1]))
    return weights


def _decoded(graph: GraphBuilder, slot: SlotLayout) -> tuple[str, str]:
    """Everything that was encoded, as float32 (rows, ·), and the mixings if they come apart from it."""
    form = ENCODINGS[slot.encoding]
    if not form.codes_per_element:
        numbers = SLOT if form.dtype == "float32" else graph.add("Cast", SLOT, to=TensorProto.FLOAT)
        return numbers, ""
    codes = SLOT
    if slot.encoding == "int4":
        low = graph.add("BitwiseAnd", SLOT, graph.constant(np.array(15, np.uint8)))
        high = graph.add("BitShift", SLOT, graph.constant(np.array(4, np.uint8)), direction="RIGHT")
        codes = graph.add("Concat", low, high, axis=1)
    scales, *exact = graph.split(SLOT_FLOATS, [n for n in _float_sizes(slot) if n], axis=1)
    # A scale per row of a matrix is decoded twice as fast as a scale per block of a vector.
    inputs = [graph.reshape(codes, [-1, BLOCK]), graph.reshape(scales, [-1])]
    if slot.encoding == "int4":
        eight = numpy_helper.from_array(np.array([8], np.uint8))
        inputs.append(graph.add("ConstantOfShape", graph.add("Shape", inputs[1]), value=eight))
    numbers = graph.add("DequantizeLinear", *inputs, axis=0)
    rows = graph.once("Shape", SLOT, start=0, end=1)
    shape = graph.add("Concat", rows, graph.constant([-1]), axis=0)
    return graph.add("Reshape", numbers, shape), exact[0] if exact else ""


def _float_sizes(slot: SlotLayout) -> tuple[int, int]:
    return slot.arrays[SLOT_FLOATS][0] - slot.exact_size, slot.exact_size


def _mixing_matrices(graph: GraphBuilder, slot: SlotLayout, exact: str) -> Iterable[tuple[str, str]]:
    """Per group (rows, d_A1·layers·r, layers·d_A2·r): each layer's mixing, for all its ranks."""
    groups = [group for group in slot.groups if slot.layers[group[0]].kind == "kron_lora"]
    counts = [len(group) for group in groups]
    sizes = [slot.layers[group[0]] for group in groups]
    lengths = [n * s.mixing[0] * s.mixing[1] for n, s in zip(counts, sizes, strict=True)]
    parts = graph.split(exact, lengths, axis=1)
    alike: dict[tuple[int, int, int, int], list[tuple[str, str]]] = defaultdict(list)
    for group, count, size, part in zip(groups, counts, sizes, parts, strict=True):
        alike[(count, size.rank, *size.mixing)].append((group[0], part))
    for (count, rank, d_a1, d_a2), members in alike.items():
        joined = graph.add("Concat", *(part for _, part in members), axis=1)
        # (rows, groups, layer, a1, a2) to (rows, groups, a1, layer, rank, layer, a2, rank), zero off the
        # diagonals of layer and rank.
        values = graph.reshape(joined, [0, -1, count, d_a1, d_a2])
        values = graph.add("Transpose", values, perm=[0, 1, 3, 2, 4])
        spread = graph.reshape(values, [0, -1, d_a1, count, 1, 1, d_a2, 1])
        diagonal = np.einsum("lm,rs->lrms", np.eye(count), np.eye(rank)).astype(np.float32)
        mask = graph.constant(diagonal.reshape(1, 1, 1, count, rank, count, 1, rank))
        matrices = graph.reshape(
            graph.add("Mul", spread, mask), [0, len(members), d_a1 * count * rank, count * d_a2 * rank]
        )
        for (path, _), matrix in zip(members, graph.split(matrices, [1] * len(members), axis=1), strict=True):
            yield path, graph.reshape(matrix, [0, d_a1 * count * rank, count * d_a2 * rank])
