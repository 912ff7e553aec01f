"""What a graph's slot holds: the factors of an adapter, arranged as the graph multiplies with them, and
encoded.

Layers that read the same tensor (query, key and value) form a group: the graph multiplies with their
left factors at once. In slot order a group has

    left    (layers · r, d_left)   B2 of each layer, or lora_A, below each other
    right   (r, d_right)           per layer B1ᵀ, or (α/r) · lora_Bᵀ
    mixing  (d_A1, d_A2)           per layer (α/r) · Aᵀ; Kron-LoRA only, and never quantized

The lefts and rights of all groups come first, then all mixings.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np
import numpy.typing as npt

from fedkron.edge.slot_encoding import BLOCK, ENCODINGS, encode
from fedkron.errors import BundleError, ConfigError, ContractError
from fedkron.layout import AdapterLayout, ModuleLayout, State, Vector

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class LayerSizes:
    """Sizes of one layer's factors: ΔW·x is computed as right · mixing · left · x.

    `mixing` is (d_A1, d_A2), (1, 1) for a plain LoRA, which has none.
    """

    kind: str
    rank: int
    left: int
    right: int
    mixing: tuple[int, int]

    @property
    def width(self) -> int:
        """d_out of the layer."""
        return self.mixing[1] * self.right


@dataclass(frozen=True)
class SlotLayout:
    """Where everything lies in a slot.

    `groups` are the paths of the layers that read the same tensor, in the order of the graph; all layers of a
    group have the same rank, left and mixing sizes. `per_row` says whether each row of a batch may have an
    adapter of its own: not where a layer reads something that all rows share (DeBERTa's positions).
    """

    adapter: AdapterLayout
    groups: tuple[tuple[str, ...], ...]
    encoding: str
    per_row: bool = True

    def __post_init__(self) -> None:
        check_encoding(self.encoding)
        if sorted(chain.from_iterable(self.groups)) != sorted(module.path for module in self.adapter.modules):
            raise ContractError("the groups of this slot are not the layers of its adapter: export again")

    @cached_property
    def layers(self) -> Mapping[str, LayerSizes]:
        """Sizes of each layer by path."""
        return {module.path: layer_sizes(module) for module in self.adapter.modules}

    @cached_property
    def coded(self) -> tuple[tuple[int, int], ...]:
        """Shapes of the matrices that are encoded, in slot order: each group's left, then its rights."""
        shapes: list[tuple[int, int]] = []
        for group in self.groups:
            sizes = [self.layers[path] for path in group]
            shapes.append((sum(size.rank for size in sizes), sizes[0].left))
            shapes += [(size.rank, size.right) for size in sizes]
        return tuple(shapes)

    @property
    def coded_size(self) -> int:
        """Number of elements that are encoded, without padding."""
        return sum(rows * columns for rows, columns in self.coded)

    @cached_property
    def mixings(self) -> tuple[str, ...]:
        """Paths of the layers with a mixing, in slot order."""
        return tuple(p for p in chain.from_iterable(self.groups) if self.layers[p].kind == "kron_lora")

    @property
    def exact_size(self) -> int:
        """Number of elements in all mixings."""
        return sum(a1 * a2 for a1, a2 in (self.layers[path].mixing for path in self.mixings))

    @cached_property
    def arrays(self) -> Mapping[str, tuple[int, str]]:
        """Number of elements and dtype of the graph's inputs for one adapter, by name."""
        form = ENCODINGS[self.encoding]
        if not form.codes_per_element:
            return {SLOT: (self.coded_size + self.exact_size, form.dtype)}
        blocks = -(-self.coded_size // BLOCK)
        return {
            SLOT: (round(blocks * BLOCK * form.codes_per_element), form.dtype),
            SLOT_FLOATS: (blocks + self.exact_size, "float32"),
        }

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) over contract, encoding and groups: equal means that the arrays fit."""
        content = {"contract": self.adapter.contract, "encoding": self.encoding, "groups": self.groups}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def pack(self, state: State) -> dict[str, npt.NDArray[np.generic]]:
        """An adapter as the arrays that the graph takes (`arrays`), without their leading axis.

        `state` has to fit the layout. Raises `AdapterError` for values that the encoding cannot hold.
        """
        modules = {module.path: module for module in self.adapter.modules}
        coded = [m for group in self.groups for m in _matrices([modules[path] for path in group], state)]
        mixings = [_mixing(modules[path], state) for path in self.mixings]
        return self._encoded(_joined(coded), _joined(mixings))

    def zeros(self) -> dict[str, npt.NDArray[np.generic]]:
        """The arrays of an adapter that changes nothing: the graph computes what the bare base does."""
        return self._encoded(np.zeros(self.coded_size, np.float32), np.zeros(self.exact_size, np.float32))

    def _encoded(self, coded: Vector, exact: Vector) -> dict[str, npt.NDArray[np.generic]]:
        slot, scales = encode(coded, exact, self.encoding)
        return {SLOT: slot} if scales is None else {SLOT: slot, SLOT_FLOATS: scales}


SLOT, SLOT_FLOATS, HEAD = "slot", "slot_floats", "head"
"""Names of a graph's inputs for an adapter."""


def check_encoding(encoding: str) -> None:
    """Raise `ConfigError` unless this is a slot encoding."""
    if encoding not in ENCODINGS:
        raise ConfigError(f"slot encoding {encoding!r} is not known: choose {', '.join(ENCODINGS)}")


def layer_sizes(module: ModuleLayout) -> LayerSizes:
    """Sizes of a layer's factors. Raises `BundleError` for an adapter kind that does not run in a graph."""
    match module.kind, {factor.name: factor.shape for factor in module.factors}:
        case "kron_lora", {"A": (d_a2, d_a1), "B1": (d_b2, rank), "B2": (rows, d_b1)} if rank == rows:
            return LayerSizes("kron_lora", rank, d_b1, d_b2, (d_a1, d_a2))
        case "lora", {"lora_A": (rank, d_in), "lora_B": (d_out, columns)} if rank == columns:
            return LayerSizes("lora", rank, d_in, d_out, (1, 1))
        case kind, shapes:
            raise BundleError(
                f"layer {module.path!r}: a {kind!r} adapter with factors {shapes} does not run in an "
                "ONNX graph (kron_lora and lora do): convert it, with fedkron convert --kind lora"
            )


def _matrices(modules: Sequence[ModuleLayout], state: State) -> list[Array]:
    """A group's left matrix, and the right matrix of each of its layers."""
    lefts, rights = [], []
    for module in modules:
        if module.kind == "kron_lora":
            lefts.append(state[module.tensor_name("B2")])
            rights.append(state[module.tensor_name("B1")].T)
        else:
            lefts.append(state[module.tensor_name("lora_A")])
            rights.append(module.scale * state[module.tensor_name("lora_B")].T)
    return [np.concatenate(lefts), *rights]


def _mixing(module: ModuleLayout, state: State) -> Array:
    return module.scale * state[module.tensor_name("A")].T


def _joined(matrices: Sequence[Array]) -> Vector:
    return np.concatenate(
        [np.empty(0, np.float32), *(matrix.ravel() for matrix in matrices)], dtype=np.float32
    )
