"""Who is compared: what is put on the frozen base, by fedkron and by PEFT; all train a head on top, too."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from peft import LoKrConfig, LoraConfig, get_peft_model
from torch import Tensor, nn

from benchmarks.adapter_contest.layers import ALPHA, RANK, WIDTH
from fedkron.adapters import AdapterSpec, attach
from fedkron.base import TaskModel
from simulations.paper.throughput_study.bases import LABELS

HEAD_ONLY = "frozen base, head only"
KRON_LORA = "Kron-LoRA"
LORA = "LoRA-8"
KRONA = "KronA"
PEFT_LORA = "PEFT LoRA-8"
PEFT_LOKR = "PEFT LoKr-8"
DROPOUT = 0.1


def _ours(kind: str, backbone: nn.Module) -> nn.Module:
    spec = AdapterSpec(kind, rank=RANK, alpha=ALPHA, dropout=DROPOUT, d_a1=WIDTH)
    return attach(backbone, spec)


def _peft(config: Callable[..., LoraConfig | LoKrConfig], backbone: nn.Module) -> nn.Module:
    linears = [path for path, module in backbone.named_modules() if type(module) is nn.Linear]
    adapted: nn.Module = get_peft_model(backbone, config(target_modules=linears)).get_base_model()
    return adapted


CONTESTANTS: dict[str, Callable[[nn.Module], nn.Module]] = {
    HEAD_ONLY: lambda backbone: backbone,
    KRON_LORA: partial(_ours, "kron_lora"),
    LORA: partial(_ours, "lora"),
    KRONA: partial(_ours, "krona"),
    PEFT_LORA: partial(_peft, partial(LoraConfig, r=RANK, lora_alpha=int(ALPHA), lora_dropout=DROPOUT)),
    PEFT_LOKR: partial(_peft, partial(LoKrConfig, r=RANK, alpha=int(ALPHA), decompose_factor=WIDTH)),
}
"""By name: puts an adapter on every linear layer of a frozen backbone.

KronA's A is as large as Kron-LoRA's, so that it is Kron-LoRA without the low rank. PEFT's LoKr has w1 of
2 × 2, and no dropout.
"""


def model_of(backbone: nn.Module, contestant: str) -> TaskModel:
    """The backbone with a contestant's adapter and a head, in training mode."""
    device = next(backbone.parameters()).device
    return TaskModel(CONTESTANTS[contestant](backbone), LABELS).to(device).train()


def loss_of(model: nn.Module, ids: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of a batch."""
    return nn.functional.cross_entropy(model(ids, torch.ones_like(ids)), labels)


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW over what is trained."""
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)


def training_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, ids: Tensor, labels: Tensor
) -> Callable[[], None]:
    """Forward, backward and AdamW, on the same batch again and again."""

    def step() -> None:
        optimizer.zero_grad()
        loss_of(model, ids, labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step
