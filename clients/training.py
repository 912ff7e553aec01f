"""Local fine-tuning on one node: the factors and the head learn, the base does not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from clients.batches import Batch, Tokenized, evaluation_batches, scores, training_batches
from clients.features import Features, fresh_features
from fedkron.base import TaskModel
from fedkron.errors import ConfigError, RunError
from fedkron.settings import AUTO, BFLOAT16, FLOAT32, TrainSettings

EVALUATION_BATCH = 64


@dataclass(frozen=True)
class Evaluation:
    """Share of right answers in [0, 1] and mean cross-entropy in nats, on a test split."""

    accuracy: float
    loss: float


def choose_device(setting: str) -> torch.device:
    """`auto` takes CUDA where there is a GPU; `ConfigError` when CUDA is asked for and missing."""
    if setting == "cuda" and not torch.cuda.is_available():
        raise ConfigError("run-config key 'device' is 'cuda', but this node has no CUDA GPU: use 'auto'")
    use_cuda = setting == "cuda" or (setting == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if use_cuda else "cpu")


def mixed_precision(device: torch.device, precision: str = AUTO) -> AbstractContextManager[object]:
    """The arithmetic that `train.precision` asks for.

    `auto` is bf16 autocast on a GPU that has it, else fp16 there, and full precision on a CPU; `float32` is
    full precision anywhere; `bfloat16` is bf16 autocast anywhere. Factors and optimizer stay in float32.
    Raises `ConfigError` when bf16 is asked for and the GPU does not have it.
    """
    dtype = _autocast_dtype(device, precision)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def train(
    model: TaskModel,
    examples: Sequence[Tokenized],
    settings: TrainSettings,
    pad_id: int,
    seed: int,
    *,
    proximal_mu: float = 0.0,
    each_step: Callable[[float], None] | None = None,
) -> float:
    """Fine-tune the trainable parameters of `model` in place; returns the mean loss of the last epoch.

    AdamW, with one learning rate for the head and one for the factors. `proximal_mu` is FedProx's μ (Li et
    al. 2020, arXiv 1812.06127): the loss gets (μ/2)·‖w − w₀‖² over the factors, which were w₀ before; the
    returned loss is without it. `each_step` is told the loss of every batch, after the step. Same seed,
    same result. Raises `RunError` when training diverged.
    """
    device = next(model.parameters()).device
    head = list(model.head.parameters())
    factors = [p for p in model.backbone.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": factors, "lr": settings.learning_rate},
            {"params": head, "lr": settings.head_learning_rate},
        ],
        weight_decay=settings.weight_decay,
    )
    needs_scaling = _autocast_dtype(device, settings.precision) == torch.float16
    scaler = torch.amp.GradScaler(device.type, enabled=needs_scaling)
    received = [factor.detach().clone() for factor in factors]
    torch.manual_seed(seed)
    model.train()
    total = 0.0
    for epoch in range(settings.epochs):
        total = 0.0
        for batch in training_batches(examples, settings.batch_size, pad_id, seed + epoch, device):
            with mixed_precision(device, settings.precision):
                loss = _loss(model(batch.input_ids, batch.attention_mask), batch)
            optimizer.zero_grad(set_to_none=True)
            drift = _squared_distance(factors, received) if proximal_mu else 0.0
            scaler.scale(loss + proximal_mu / 2 * drift).backward()  # type: ignore[no-untyped-call]
            scaler.step(optimizer)
            scaler.update()
            total += loss.item() * len(batch.counts)
            if each_step is not None:
                each_step(loss.item())
    model.eval()
    if not all(torch.isfinite(parameter).all() for parameter in (*factors, *head)):
        raise RunError(
            "training diverged: lower train.learning-rate or train.head-learning-rate "
            f"(they are {settings.learning_rate:g} and {settings.head_learning_rate:g})"
        )
    return total / len(examples)


@torch.inference_mode()
def evaluate(
    model: TaskModel,
    examples: Sequence[Tokenized],
    pad_id: int,
    features: Features | None = None,
    *,
    precision: str = AUTO,
) -> Evaluation:
    """Accuracy and loss of `model` on examples; `features` are those of its backbone, if they are kept.

    `precision` is as in `mixed_precision`.
    """
    device = next(model.parameters()).device
    features = features or fresh_features(model.backbone)
    model.eval()

    def scored() -> Iterable[tuple[Tensor, Batch]]:
        for batch in evaluation_batches(examples, EVALUATION_BATCH, pad_id, device):
            with mixed_precision(device, precision):
                yield model.head(features(batch)), batch

    return _evaluation(scored())


def evaluate_head_only(
    backbone: nn.Module,
    train_examples: Sequence[Tokenized],
    test_examples: Sequence[Tokenized],
    outputs: int,
    settings: TrainSettings,
    *,
    pad_id: int,
    epochs: int,
    seed: int,
    features: Features | None = None,
) -> Evaluation:
    """What the frozen base reaches with a trained head alone: the honest "before" of an adapter.

    Give it as many epochs as the adapter gets. The base's features are computed only once; `features` are
    those of `backbone`, if they are kept.
    """
    features = features or fresh_features(backbone)
    device = next(backbone.parameters()).device
    head = TaskModel(backbone, outputs).head.to(device)
    with torch.no_grad(), mixed_precision(device, settings.precision):
        train_set, test_set = (
            [
                (features(batch).float(), batch)
                for batch in evaluation_batches(part, settings.batch_size, pad_id, device)
            ]
            for part in (train_examples, test_examples)
        )
    optimizer = torch.optim.AdamW(
        head.parameters(), settings.head_learning_rate, weight_decay=settings.weight_decay
    )
    order = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for index in torch.randperm(len(train_set), generator=order).tolist():
            seen, batch = train_set[index]
            loss = _loss(head(seen), batch)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    with torch.inference_mode():
        return _evaluation((head(seen), batch) for seen, batch in test_set)


def _evaluation(scored: Iterable[tuple[Tensor, Batch]]) -> Evaluation:
    right = seen = 0
    loss = 0.0
    for logits, batch in scored:
        answers = scores(logits.float(), batch)
        right += int((answers.argmax(-1) == batch.targets).sum())
        loss += nn.functional.cross_entropy(answers, batch.targets, reduction="sum").item()
        seen += len(batch.counts)
    return Evaluation(right / seen, loss / seen)


def _loss(logits: Tensor, batch: Batch) -> Tensor:
    return nn.functional.cross_entropy(scores(logits.float(), batch), batch.targets)


def _squared_distance(tensors: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    return torch.stack([(a - b).square().sum() for a, b in zip(tensors, others, strict=True)]).sum()


def _autocast_dtype(device: torch.device, precision: str) -> torch.dtype | None:
    """What matrix products are computed in; nothing where they stay as they are."""
    if precision == FLOAT32 or (precision == AUTO and device.type != "cuda"):
        return None
    if device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    if precision == BFLOAT16:
        raise ConfigError(
            "run-config key 'train.precision' is 'bfloat16', which this GPU does not have: use 'auto'"
        )
    return torch.float16
