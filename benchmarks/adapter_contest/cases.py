"""What `benchmarks/adapters.py` measures: one layer at a time, and all layers of MiniLM together."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from benchmarks.adapter_contest.layers import BARE, adapted, bytes_without, contestants, saved_storages
from benchmarks.adapter_contest.timing import Seconds, interleaved
from fedkron.base import TaskModel

FORWARD = "forward"
STEP = "training step"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
DROPOUT_TOKENS = 256
"""At this many tokens the saved memory is also measured with a dropout of 0.1."""
HUGE = 3e10
"""Multiplications of a bare layer from which on it is timed with the most threads only, of those chosen."""
LABELS = 6


@dataclass(frozen=True)
class Shape:
    """A linear layer d_in → d_out of a base, and the d_A2 of its adapter."""

    base: str
    d_in: int
    d_out: int
    d_a2: int
    bias: bool = True

    def __str__(self) -> str:
        return f"{self.d_in}→{self.d_out}"


SHAPES = {
    "minilm": [Shape("MiniLM", *sizes, 2) for sizes in ((384, 384), (384, 1536), (1536, 384))],
    "distilbert": [Shape("DistilBERT", *sizes, 4) for sizes in ((768, 768), (768, 3072), (3072, 768))],
    "mistral": [
        Shape("Mistral", *sizes, 16, bias=False)
        for sizes in ((4096, 4096), (4096, 1024), (4096, 14336), (14336, 4096))
    ],
}


@dataclass(frozen=True)
class Timing:
    """Seconds of a forward pass or a training step (`mode`) of what `base` and `layer` name."""

    base: str
    layer: str
    tokens: int
    dtype: str
    device: str
    threads: int
    mode: str
    seconds: Seconds


@dataclass(frozen=True)
class Saved:
    """Bytes kept for the backward pass besides the parameters, by contestant.

    Counted with the layer's input x and without it; of a whole model, both are the same.
    """

    base: str
    layer: str
    tokens: int
    dtype: str
    dropout: float
    bytes_with_x: dict[str, int]
    bytes_without_x: dict[str, int]


@dataclass(frozen=True)
class Plan:
    """All cases of a run, the time for each, and where to compute."""

    shapes: Sequence[Shape]
    tokens: Sequence[int]
    dtypes: Sequence[str]
    threads: Sequence[int]
    batches: Sequence[tuple[int, int]]
    device: torch.device
    budget: float

    def __len__(self) -> int:
        """Number of timings."""
        layers = sum(len(self.threads_for(shape, tokens)) for shape in self.shapes for tokens in self.tokens)
        return 2 * layers * len(self.dtypes) + len(self.batches) * len(self.threads)

    def threads_for(self, shape: Shape, tokens: int) -> Sequence[int]:
        """All numbers of threads; only the greatest for a layer that takes many seconds a round."""
        return [max(self.threads)] if shape.d_in * shape.d_out * tokens > HUGE else self.threads


Started = Callable[[str], None]


def layer_cases(plan: Plan, started: Started) -> Iterator[Timing | Saved]:
    """Every shape, dtype and number of tokens; `started` hears the name of a timing before it begins."""
    for shape in plan.shapes:
        for dtype in plan.dtypes:
            linear = nn.Linear(shape.d_in, shape.d_out, shape.bias, plan.device, DTYPES[dtype])
            wraps = contestants(DTYPES[dtype])
            layers = {name: adapted(wrap, linear, shape.d_a2, 0.0) for name, wrap in wraps.items()}
            for tokens in plan.tokens:
                x = torch.randn(
                    1, tokens, shape.d_in, device=plan.device, dtype=DTYPES[dtype], requires_grad=True
                )
                yield _saved(shape, dtype, 0.0, layers, x)
                if tokens == DROPOUT_TOKENS:
                    dropped = {name: adapted(wrap, linear, shape.d_a2, 0.1) for name, wrap in wraps.items()}
                    yield _saved(shape, dtype, 0.1, dropped, x)
                for threads in plan.threads_for(shape, tokens):
                    torch.set_num_threads(threads)
                    for mode, step in ((FORWARD, _forward), (STEP, _training_step)):
                        started(f"{shape.base} {shape}, {tokens} tokens, {dtype}, {mode}")
                        steps = {name: step(layer, x) for name, layer in layers.items()}
                        seconds = interleaved(steps, plan.device, plan.budget)
                        where = (dtype, plan.device.type, threads)
                        yield Timing(shape.base, str(shape), tokens, *where, mode, seconds)


def model_cases(plan: Plan, started: Started) -> Iterator[Timing | Saved]:
    """A training step of MiniLM with every linear layer wrapped, dropout 0.1, for each batch shape."""
    if not plan.batches:
        return
    base = minilm().to(plan.device)
    models = {name: _wrapped(base, name) for name in contestants(torch.float32)}
    for batch, length in plan.batches:
        ids = torch.randint(1000, 30000, (batch, length), device=plan.device)
        labels = torch.randint(LABELS, (batch,), device=plan.device)
        name, tokens = f"{batch} × {length}", batch * length
        saved = {
            who: bytes_without(saved_storages(partial(_loss, model, ids, labels)), model.parameters())
            for who, model in models.items()
        }
        yield Saved("MiniLM, whole", name, tokens, "fp32", 0.1, saved, saved)
        for threads in plan.threads:
            torch.set_num_threads(threads)
            started(f"MiniLM, whole, {name}")
            steps = {who: _model_step(model, ids, labels) for who, model in models.items()}
            seconds = interleaved(steps, plan.device, plan.budget)
            yield Timing("MiniLM, whole", name, tokens, "fp32", plan.device.type, threads, STEP, seconds)


def _saved(shape: Shape, dtype: str, dropout: float, layers: dict[str, nn.Module], x: Tensor) -> Saved:
    with_x, without_x = {}, {}
    for name, layer in layers.items():
        # The bare layer has the base's weight, which an adapted one may not list as its own.
        parameters = [*layer.parameters(), *layers[BARE].parameters()]
        storages = saved_storages(partial(layer, x))
        with_x[name] = bytes_without(storages, parameters)
        without_x[name] = bytes_without(storages, [*parameters, x])
    return Saved(shape.base, str(shape), x.shape[1], dtype, dropout, with_x, without_x)


def _forward(layer: nn.Module, x: Tensor) -> Callable[[], None]:
    def step() -> None:
        with torch.inference_mode():
            layer(x)

    return step


def _training_step(layer: nn.Module, x: Tensor) -> Callable[[], None]:
    trained = [x, *(parameter for parameter in layer.parameters() if parameter.requires_grad)]
    with torch.inference_mode():
        shape = layer(x).shape
    dy = torch.randn(shape, device=x.device, dtype=x.dtype)

    def step() -> None:
        for tensor in trained:
            tensor.grad = None
        layer(x).backward(dy)

    return step


def minilm() -> nn.Module:
    """The architecture of all-MiniLM-L6-v2 with random weights: the time is the same."""
    config = AutoConfig.for_model(
        "bert", num_hidden_layers=6, hidden_size=384, num_attention_heads=12, intermediate_size=1536
    )
    model: nn.Module = AutoModel.from_config(config, add_pooling_layer=False)
    return model


def _wrapped(base: nn.Module, contestant: str) -> TaskModel:
    """A copy of the base with a head that is trained, like the contestant's factors, and nothing else."""
    wrap = contestants(torch.float32)[contestant]
    backbone = copy.deepcopy(base).requires_grad_(False).train()
    linears = {path: module for path, module in backbone.named_modules() if type(module) is nn.Linear}
    for path, linear in linears.items():
        backbone.set_submodule(path, adapted(wrap, linear, SHAPES["minilm"][0].d_a2, 0.1))
    if contestant == BARE:
        # Nothing in it is trained: without this there would be no backward pass to compare with.
        backbone.get_input_embeddings().register_forward_hook(
            lambda _m, _i, output: output.requires_grad_(True)
        )
    return TaskModel(backbone, LABELS).to(base.device)


def _loss(model: nn.Module, ids: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(ids, torch.ones_like(ids)), labels)


def _model_step(model: nn.Module, ids: Tensor, labels: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(parameter for parameter in model.parameters() if parameter.requires_grad)

    def step() -> None:
        optimizer.zero_grad()
        _loss(model, ids, labels).backward()
        optimizer.step()

    return step
