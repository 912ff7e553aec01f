"""What a model that is not being trained makes of texts: computed once, for all nodes that ask for the same.

The nodes that one process simulates often share a test split, and in a round they evaluate the same adapter
on it. Their heads differ, but the features that the heads see do not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from clients.batches import Batch
from fedkron.base import text_features
from fedkron.bounded_cache import BoundedCache
from fedkron.layout import State

Features = Callable[[Batch], Tensor]
"""Features (texts, hidden) of a batch."""

CAPACITY = 64 * 2**20
"""Bytes: 40,000 texts with a base of width 384."""

_kept: BoundedCache[tuple[bytes, ...], Tensor] = BoundedCache(
    CAPACITY, lambda tensor: tensor.numel() * tensor.element_size()
)


def fresh_features(backbone: nn.Module) -> Features:
    """Features that are computed each time."""
    return lambda batch: text_features(backbone, batch.input_ids, batch.attention_mask)


def kept_features(backbone: nn.Module, identity: bytes) -> Features:
    """Features that are computed once for the same batch.

    `identity` has to name all that `backbone` computes with, by content (`identity_of`). The features are bit
    for bit what computing them again would give: a batch is only the same with the same padding.
    """

    def features(batch: Batch) -> Tensor:
        ids, mask = batch.input_ids, batch.attention_mask
        place = f"{ids.device} {list(ids.shape)} {_arithmetic(backbone, ids.device.type)}".encode()
        key = (identity, place, _digest(ids), _digest(mask))
        return _kept.get(key, lambda: _computed(backbone, ids, mask))

    return features


def identity_of(contract: str, *states: State) -> bytes:
    """Names a model by content: the contract or fingerprint, and the tensors that are on the base."""
    digest = hashlib.blake2b(contract.encode(), digest_size=16)
    for state in states:
        digest.update(str(len(state)).encode())
        for name, values in state.items():
            digest.update(f"{name} {values.dtype.str} {list(values.shape)}\n".encode())
            digest.update(values.tobytes())
    return digest.digest()


def _computed(backbone: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    # Not in inference mode, whoever asks: a head may be trained on what is kept.
    with torch.inference_mode(False), torch.no_grad():
        return text_features(backbone, ids, mask)


def _arithmetic(backbone: nn.Module, device: str) -> str:
    held = next(backbone.parameters()).dtype
    return f"{held} {torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else held}"


def _digest(tensor: Tensor) -> bytes:
    return hashlib.blake2b(tensor.cpu().numpy().tobytes(), digest_size=16).digest()
