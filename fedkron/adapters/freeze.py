"""Training only some of an adapter's tensors for a while."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def only_trained(model: nn.Module, names: Collection[str]) -> Iterator[None]:
    """Freeze all trainable parameters of `model` but those with these names, until the context ends."""
    others = [p for name, p in model.named_parameters() if p.requires_grad and name not in names]
    for parameter in others:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in others:
            parameter.requires_grad_(True)
