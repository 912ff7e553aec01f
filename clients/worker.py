"""The model in a client process: loaded once, then reused for every node and round it serves."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from functools import lru_cache
from logging import INFO
from typing import Any

import torch
from flwr.common import log
from torch import nn

from clients.batches import Tokenized, tokenize
from clients.examples import Example
from clients.training import choose_device
from fedkron.adapters import adapter_layout, attach
from fedkron.base import Base, TaskModel, load_base
from fedkron.layout import AdapterLayout
from fedkron.settings import FLOAT32, AdapterSettings

BASE_LOADED = "loaded the base"
"""In Flower's log, once for each process that serves nodes."""


@dataclass(frozen=True, eq=False)
class Worker:
    """A base with and without adapter (the frozen weights are shared), and what goes with it.

    `layout` is the adapter's, without a head.
    """

    bare: nn.Module
    adapted: nn.Module
    tokenizer: Any
    layout: AdapterLayout

    @property
    def fingerprint(self) -> str:
        """The base's."""
        return self.layout.base

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states."""
        return int(self.bare.config.hidden_size)  # type: ignore[union-attr, arg-type]

    @property
    def pad_id(self) -> int:
        """Token id that fills up short texts."""
        return int(self.tokenizer.pad_token_id)

    def task_model(self, outputs: int) -> TaskModel:
        """The adapted base with a fresh head, on the base's device."""
        return TaskModel(self.adapted, outputs).to(next(self.adapted.parameters()).device)


@lru_cache(maxsize=8)  # nodes of several sizes may take turns in one process
def load_worker(
    base: str, adapter: AdapterSettings, device: str, truncation_side: str, dtype: str = FLOAT32
) -> Worker:
    """Load the base and attach the adapter; workers with other adapters share the base's weights.

    They are held in `dtype` (`base-dtype` of a run), and named by what they are in float32: nodes that hold
    them in either can work together.
    """
    loaded = _loaded_base(base, device, truncation_side, dtype)
    bare = loaded.backbone
    # A copy of the module tree only: the weights are frozen, so both can use the same tensors.
    shared = {id(tensor): tensor for tensor in (*bare.parameters(), *bare.buffers())}
    adapted = attach(copy.deepcopy(bare, shared), adapter.spec())
    return Worker(bare, adapted, loaded.tokenizer, adapter_layout(adapted, loaded.fingerprint))


@lru_cache(maxsize=16)  # a test split is often that of many nodes
def tokenized(worker: Worker, examples: tuple[Example, ...], max_length: int) -> tuple[Tokenized, ...]:
    """Token ids of examples by the worker's tokenizer: see `clients.batches.tokenize`."""
    return tuple(tokenize(examples, worker.tokenizer, max_length))


@lru_cache(maxsize=1)
def _loaded_base(base: str, device: str, truncation_side: str, dtype: str) -> Base:
    loaded = load_base(base)
    log(INFO, "%s %s by process %d", BASE_LOADED, base, os.getpid())
    loaded.tokenizer.truncation_side = truncation_side
    loaded.backbone.to(choose_device(device), getattr(torch, dtype))
    return loaded
