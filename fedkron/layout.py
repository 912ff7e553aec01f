"""The wire layout of an adapter: which tensors travel, in which order, with which shapes.

This is the one thing that adapters (torch), compression, aggregation and the edge runtime (numpy) all
have to agree on. A layout, together with the fingerprint of its base, hashes to the **contract**: an
adapter, a payload or a bundle may be applied only where the contracts match.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fedkron.errors import AdapterError, ContractError

LAYOUT_VERSION = 2

MAX_DIMENSIONS, MAX_ELEMENTS = 32, 2**32 - 1
"""Of a tensor, and of factors or dense tensors together, in a layout that is read: a window is two uint32."""

HEAD_WEIGHT, HEAD_BIAS = "head.weight", "head.bias"
"""Names of a shared head's tensors, (outputs, hidden) and (outputs,)."""

State = dict[str, npt.NDArray[np.float32]]
"""Tensors by name: an adapter, or an update (a difference of two adapters)."""

Vector = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class TensorLayout:
    """Name and shape of one float32 tensor."""

    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def elements(tensors: Iterable[TensorLayout]) -> int:
    """Number of elements of some tensors together."""
    return sum(tensor.size for tensor in tensors)


class Tensors(tuple[TensorLayout, ...]):
    """Tensors in order, hashed once: codecs look up where their blocks lie for every payload."""

    @cached_property
    def _hash(self) -> int:
        return super().__hash__()

    def __hash__(self) -> int:
        return self._hash


class Sections(NamedTuple):
    """The two parts of an adapter that are encoded, and accounted for, separately."""

    factors: tuple[TensorLayout, ...]
    dense: tuple[TensorLayout, ...]


@dataclass(frozen=True, slots=True)
class ModuleLayout:
    """The adapter of one wrapped linear layer.

    `path` is the layer's dotted path in the base, `kind` the adapter kind (`fedkron.kinds`), `scale` the
    factor α/r in front of the product, `weight_shape` the (d_out, d_in) of the wrapped layer, `factors` its
    tensors in the order they travel. What the factors mean is known to the kind alone.
    """

    path: str
    kind: str
    scale: float
    weight_shape: tuple[int, int]
    factors: tuple[TensorLayout, ...]

    def __post_init__(self) -> None:
        # 4 and 4.0 are equal but written differently: equal layouts must have equal contracts.
        object.__setattr__(self, "scale", float(self.scale))

    def tensor_name(self, factor: str) -> str:
        """Full name of one factor, as it appears in a state: `path.factor`."""
        return f"{self.path}.{factor}"


@dataclass(frozen=True)
class AdapterLayout:
    """Everything that must match before an adapter may be applied.

    `base` is the SHA-256 fingerprint of the base's weights (hex; empty where there is no base, as for
    the arrays of somebody else's Flower app). `dense` lists tensors that are trained in full and
    travel as they are, such as a head that all clients share.

    Raises `ContractError` when two tensors have the same name.
    """

    base: str
    modules: tuple[ModuleLayout, ...]
    dense: tuple[TensorLayout, ...] = ()

    def __post_init__(self) -> None:
        names = Counter(tensor.name for tensor in self.tensors)
        if twice := [name for name, count in names.items() if count > 1]:
            raise ContractError(f"not an adapter layout: two tensors have the name {twice[0]!r}")

    @cached_property
    def sections(self) -> Sections:
        """All tensors in wire order, by full name: first the factors, then what is trained in full."""
        factors = Tensors(
            TensorLayout(module.tensor_name(factor.name), factor.shape)
            for module in self.modules
            for factor in module.factors
        )
        return Sections(factors, Tensors(self.dense))

    @cached_property
    def tensors(self) -> tuple[TensorLayout, ...]:
        """All tensors in wire order, by full name."""
        return self.sections.factors + self.sections.dense

    @cached_property
    def factor_names(self) -> frozenset[str]:
        """Full names of the factors: all tensors but the dense ones."""
        return frozenset(tensor.name for tensor in self.sections.factors)

    @cached_property
    def size(self) -> int:
        """Number of float32 elements in all tensors together."""
        return elements(self.tensors)

    def lora_size(self, rank: int) -> int:
        """Number of elements if the same layers had a plain LoRA of this rank instead (plus `dense`)."""
        factors = sum(rank * sum(module.weight_shape) for module in self.modules)
        return factors + elements(self.dense)

    @cached_property
    def contract(self) -> str:
        """SHA-256 (hex) of the canonical JSON form: equal contracts mean interchangeable adapters."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """Canonical JSON: same layout, same bytes."""
        return _canonical({"version": LAYOUT_VERSION, **asdict(self)})

    @staticmethod
    def from_json(text: str | bytes) -> AdapterLayout:
        """Inverse of `to_json`; whitespace and the order of keys do not matter.

        Raises `ContractError` when the text is not a layout of a version that we know.
        """
        try:
            content = json.loads(text)
            version = content["version"]
            if version != LAYOUT_VERSION:
                raise ContractError(
                    f"layout version {version!r} is not known here (known: {LAYOUT_VERSION}); "
                    "update fedkron on this machine"
                )
            modules = tuple(
                ModuleLayout(
                    str(m["path"]),
                    str(m["kind"]),
                    _scale(m["scale"]),
                    _weight_shape(m["weight_shape"]),
                    _tensors(m["factors"]),
                )
                for m in content["modules"]
            )
            layout = AdapterLayout(str(content["base"]), modules, _tensors(content["dense"]))
            # Unknown keys and values of another type got lost above: the contract would not cover them.
            if _canonical(content) != layout.to_json():
                raise ContractError(
                    f"not an adapter layout: it has keys or types that version {LAYOUT_VERSION} does not have"
                )
            return layout
        except ContractError:
            raise
        except (LookupError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise ContractError(f"not an adapter layout: {error!r}") from error

    def with_head(self, outputs: int, hidden_size: int) -> AdapterLayout:
        """The same layout with a head that all nodes share: `head.weight` and `head.bias` travel too.

        Raises `ContractError` when it has a head already.
        """
        head = (TensorLayout(HEAD_WEIGHT, (outputs, hidden_size)), TensorLayout(HEAD_BIAS, (outputs,)))
        return AdapterLayout(self.base, self.modules, self.dense + head)

    def of_state(self, state: Mapping[str, npt.NDArray[np.floating]]) -> AdapterLayout:
        """Layout of some of these tensors, or of factors with other sizes, for the same layers and scales.

        An adapter that has all tensors, in these shapes, has this layout. Raises `AdapterError` for a tensor
        that this layout does not have, or has with another number of dimensions.
        """
        known = {tensor.name: tensor for tensor in self.tensors}
        for name, values in state.items():
            if name not in known:
                raise AdapterError(f"tensor {name!r} is not part of the adapter's layout")
            if values.ndim != len(known[name].shape):
                raise AdapterError(
                    f"tensor {name!r} has shape {list(values.shape)}, "
                    f"the layout says {list(known[name].shape)}"
                )

        def present(tensors: tuple[TensorLayout, ...], prefix: str = "") -> tuple[TensorLayout, ...]:
            return tuple(
                TensorLayout(tensor.name, tuple(state[prefix + tensor.name].shape))
                for tensor in tensors
                if prefix + tensor.name in state
            )

        modules = (replace(m, factors=present(m.factors, f"{m.path}.")) for m in self.modules)
        return AdapterLayout(self.base, tuple(m for m in modules if m.factors), present(self.dense))

    @property
    def has_head(self) -> bool:
        """Whether a shared head is part of the adapter."""
        return any(tensor.name == HEAD_WEIGHT for tensor in self.dense)

    @staticmethod
    def of_arrays(arrays: Mapping[str, npt.NDArray[np.floating]]) -> AdapterLayout:
        """Layout of arbitrary named arrays without a base: all dense, in the order given."""
        return AdapterLayout("", (), tuple(TensorLayout(n, tuple(a.shape)) for n, a in arrays.items()))


def _canonical(content: object) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"))


def _scale(number: Any) -> float:  # noqa: ANN401
    scale = float(number)
    if not math.isfinite(scale):
        raise ContractError(f"not an adapter layout: a scale is {scale}")
    return scale


def _weight_shape(numbers: Any) -> tuple[int, int]:  # noqa: ANN401
    d_out, d_in = map(int, numbers)
    if d_out < 1 or d_in < 1:
        raise ContractError(f"not an adapter layout: a layer's weight has shape {[d_out, d_in]}")
    return d_out, d_in


def _tensors(items: Any) -> tuple[TensorLayout, ...]:  # noqa: ANN401
    tensors = tuple(TensorLayout(str(item["name"]), tuple(map(int, item["shape"]))) for item in items)
    for tensor in tensors:
        if len(tensor.shape) > MAX_DIMENSIONS or not all(0 <= n <= MAX_ELEMENTS for n in tensor.shape):
            raise ContractError(
                f"not an adapter layout: {tensor.name!r} has shape {list(tensor.shape)!s:.60}"
            )
    if (count := elements(tensors)) > MAX_ELEMENTS:
        raise ContractError(f"not an adapter layout: its tensors have {count} elements")
    return tensors


def flatten(state: Mapping[str, npt.NDArray[np.floating]], layout: AdapterLayout) -> Vector:
    """Concatenate a state's tensors, row-major and in wire order, into one float32 vector.

    Raises `AdapterError` when a tensor is missing, unknown or of another shape than the layout's.
    """
    names = {tensor.name for tensor in layout.tensors}
    if unknown := sorted(state.keys() - names):
        raise AdapterError(f"tensor {unknown[0]!r} is not part of the adapter's layout ({len(unknown)} such)")
    if missing := sorted(names - state.keys()):
        raise AdapterError(f"tensor {missing[0]!r} of the adapter's layout is missing ({len(missing)} such)")
    for tensor in layout.tensors:
        if (shape := state[tensor.name].shape) != tensor.shape:
            raise AdapterError(
                f"tensor {tensor.name!r} has shape {list(shape)}, the layout says {list(tensor.shape)}"
            )
    # Only now that real arrays have the layout's shapes: a hostile layout could name any size.
    vector = np.empty(layout.size, np.float32)
    for name, part in unflatten(vector, layout).items():
        part[...] = state[name]
    return vector


def unflatten(vector: Vector, layout: AdapterLayout) -> State:
    """Split a float32 vector of `layout.size` elements into named tensors (views, not copies).

    Raises `AdapterError` when the length is not the layout's.
    """
    if vector.shape != (layout.size,):
        raise AdapterError(f"vector has shape {list(vector.shape)}, the layout needs [{layout.size}]")
    state: State = {}
    start = 0
    for tensor in layout.tensors:
        state[tensor.name] = vector[start : start + tensor.size].reshape(tensor.shape)
        start += tensor.size
    return state
