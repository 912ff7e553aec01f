"""Fold adapters into the weights of the base, and take them out again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from fedkron.adapters.adapted_linear import AdaptedLinear
from fedkron.adapters.attach import adapted_places
from fedkron.adapters.linear_like import fold
from fedkron.errors import AdapterError


@dataclass(frozen=True)
class Merged:
    """What `merge` has taken off a model. Forget it, and the original weights are freed."""

    model: nn.Module
    places: dict[str, AdaptedLinear]
    weights: dict[AdaptedLinear, nn.Parameter]
    was_tied: bool

    def unmerge(self) -> None:
        """Put adapters and original weights back in place, bit for bit: they are the same tensors."""
        for layer, weight in self.weights.items():
            layer.base.weight = weight
        for path, layer in self.places.items():
            self.model.set_submodule(path, layer)
        if self.was_tied:
            _config(self.model).tie_word_embeddings = True


def merge(model: nn.Module) -> Merged:
    """Fold every ΔW into its layer's weight and remove the wrappers, in place: `model` is plain again.

    The sum is taken in float32 (float64 for a float64 weight) and rounded to the weight's dtype. A
    weight that is tied to an embedding becomes a tensor of its own, and `config.tie_word_embeddings`
    becomes False, so that a saved model is loaded again as it was.

    Raises `AdapterError`, leaving the model untouched, when no adapter is attached, and for a layer whose
    weight is quantized; the message names it.
    """
    places = adapted_places(model)
    if not places:
        raise AdapterError("no adapter is attached to this model: there is nothing to merge")
    folded: dict[AdaptedLinear, nn.Parameter] = {}
    for path, layer in places.items():
        try:
            if layer not in folded:
                folded[layer] = fold(layer.base, layer.delta())
        except AdapterError as error:
            raise AdapterError(f"layer {path!r} cannot be merged: {error}") from None

    weights = {layer: layer.base.weight for layer in folded}
    for layer, weight in folded.items():
        layer.base.weight = weight
    for path, layer in places.items():
        model.set_submodule(path, layer.base)
    # A weight that is still in the model belonged to another module as well.
    untied = bool({id(w) for w in weights.values()} & {id(p) for p in model.parameters()})
    was_tied = untied and bool(getattr(_config(model), "tie_word_embeddings", False))
    if was_tied:
        _config(model).tie_word_embeddings = False
    return Merged(model, places, weights, was_tied)  # type: ignore[arg-type]


def _config(model: nn.Module) -> Any:  # noqa: ANN401
    return getattr(model, "config", None)
