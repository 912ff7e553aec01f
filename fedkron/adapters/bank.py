"""Several adapters on one base: named, switched in microseconds, or another one for each row of a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fedkron.adapters.adapted_linear import AdaptedLinear
from fedkron.adapters.attach import adapted_layers, adapted_places, attach_layout, detach
from fedkron.adapters.state import load_adapter_state
from fedkron.errors import AdapterError
from fedkron.layout import AdapterLayout, State


class AdapterBank:
    """Adapters that take turns on one model.

    Each has layers of its own around the same frozen ones, so that adapters of different kinds, ranks and
    targets go together. To switch is to put other modules in the same places; no number is copied. Not for
    several threads at once: they would share the model.

    Raises `AdapterError` when the model has an adapter already.
    """

    def __init__(self, model: nn.Module) -> None:
        if any(True for _ in adapted_layers(model)):
            raise AdapterError("this model has an adapter already: detach it first")
        self.model = model
        self._adapters: dict[str, dict[str, AdaptedLinear]] = {}
        # Every place where some adapter has a layer: its parent's modules, its name there, the bare layer.
        self._places: dict[str, tuple[dict[str, nn.Module | None], str, nn.Module]] = {}
        self._active: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters, in the order in which they came."""
        return tuple(self._adapters)

    @property
    def active(self) -> str | None:
        """The adapter that the model computes with; None for the bare base."""
        return self._active

    def add(self, name: str, layout: AdapterLayout, state: State) -> None:
        """Add an adapter, or replace the one of that name; the active one stays active.

        Tensors of `layout.dense` that are no parameters of the model (a head that stands beside it) are the
        caller's business. Raises `AdapterError`, leaving the bank as it was, when one is a parameter of the
        model, and like `attach_layout` and `load_adapter_state`.
        """
        if dense := [t.name for t in layout.dense if t.name in dict(self.model.named_parameters())]:
            raise AdapterError(f"adapter {name!r} trains {dense[0]!r} in full, which a bank does not switch")
        active = self._active
        self.activate(None)
        try:
            attach_layout(self.model, layout)
            load_adapter_state(self.model, {key: state[key] for key in layout.factor_names & state.keys()})
            layers = adapted_places(self.model)
        finally:
            detach(self.model)
            self.activate(active)
        for path, layer in layers.items():
            parent, _, key = path.rpartition(".")
            self._places[path] = (self.model.get_submodule(parent)._modules, key, layer.base)
        self._adapters[name] = layers
        self.activate(active)

    def remove(self, name: str) -> None:
        """Forget an adapter; the base is bare afterwards if it was the active one."""
        self._check(name)
        if self._active == name:
            self.activate(None)
        del self._adapters[name]

    def activate(self, name: str | None) -> None:
        """Compute with this adapter from now on; None for the bare base. Raises `AdapterError` if unknown."""
        layers = {} if name is None else self._layers(name)
        for path, (modules, key, linear) in self._places.items():
            modules[key] = layers.get(path, linear)
        self._active = name

    @contextmanager
    def rows(self, names: Sequence[str | None]) -> Iterator[None]:
        """Compute row i of each batch with adapter `names[i]` (None: the bare base).

        For batches of exactly `len(names)` rows whose first dimension is the batch in every layer. Gradients
        reach the factors of each adapter. Raises `AdapterError` for an unknown name, and, in the forward
        pass, for an input with another number of rows.
        """
        wanted = {name: self._layers(name) for name in dict.fromkeys(names) if name is not None}
        own = {name: [row for row, other in enumerate(names) if other == name] for name in wanted}
        active = self._active
        for path, (modules, key, linear) in self._places.items():
            groups = [(layers[path], own[name]) for name, layers in wanted.items() if path in layers]
            modules[key] = _RowWise(path, linear, groups, len(names))
        try:
            yield
        finally:
            self.activate(active)

    def _layers(self, name: str) -> dict[str, AdaptedLinear]:
        self._check(name)
        return self._adapters[name]

    def _check(self, name: str) -> None:
        if name not in self._adapters:
            raise AdapterError(
                f"no adapter {name!r} in the bank: it has {', '.join(self._adapters) or 'none'}"
            )


class _RowWise(nn.Module):
    """A linear layer with several adapters, each for rows of its own."""

    def __init__(
        self, path: str, linear: nn.Module, groups: Sequence[tuple[AdaptedLinear, list[int]]], rows: int
    ) -> None:
        super().__init__()
        self._path, self._rows = path, rows
        self._sizes = [len(own) for _, own in groups]
        self._order = torch.tensor([row for _, own in groups for row in own], dtype=torch.int64)
        self.base = linear
        self.layers = nn.ModuleList([layer for layer, _ in groups])

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] != self._rows:
            raise AdapterError(
                f"layer {self._path!r} got {x.shape[0]} rows, but adapters were named for {self._rows}"
            )
        output: Tensor = self.base(x)
        if not self._sizes:
            return output
        # Sorted by adapter once, so that each works on rows that lie together.
        order = self._order.to(x.device)
        parts = torch.split(x.index_select(0, order), self._sizes)
        changes = [layer.change(part) for layer, part in zip(self.layers, parts, strict=True)]  # type: ignore[operator]
        return output.index_add(0, order, torch.cat(changes).to(output.dtype))
