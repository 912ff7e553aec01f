"""What is compared: an adapter, how nodes' updates are combined, and in which order tasks are trained."""

from __future__ import annotations

from dataclasses import dataclass

from fedkron.settings import AdapterSettings

SEQUENCE, JOINT, SEPARATE = "sequence", "joint", "separate"
"""One task after the other on the same adapter; both at once; each on an adapter of its own from the same
start."""

KRON_LORA, LORA, KRONA = "kron_lora", "lora", "krona"


@dataclass(frozen=True)
class Way:
    """One line of the comparison.

    `clients` is per task; with one, in float32, a sequence is plain sequential fine-tuning on one machine,
    with a new optimizer each epoch. `mergings` are tried on separate adapters: names in `mergings.MERGINGS`.
    """

    name: str
    kind: str
    rank: int
    plan: str
    aggregation: str = "factorwise"
    clients: int = 1
    codec: str = "fp32"
    mergings: tuple[str, ...] = ()

    def adapter(self) -> AdapterSettings:
        """α stays 32 for Kron-LoRA and KronA, as in the paper; LoRA's ranks all have α/r = 4."""
        return AdapterSettings(kind=self.kind, rank=self.rank, alpha=4.0 * self.rank)


def sequential(name: str, kind: str, rank: int = 8) -> Way:
    """On one machine."""
    return Way(name, kind, rank, SEQUENCE)


def federated(name: str, plan: str, aggregation: str = "factorwise", *, kind: str = KRON_LORA) -> Way:
    """Two nodes a task, with the default codec both ways."""
    return Way(name, kind, 8, plan, aggregation, clients=2, codec="ecsq")


ONE_MACHINE = sequential("Kron-LoRA", KRON_LORA)
LORA_8 = sequential("LoRA-8", LORA)
FEDERATED = federated("federated mean", SEQUENCE)
ALTERNATING = federated("federated alternating", SEQUENCE, "alternating")
MERGED_TASKS = Way(
    "adapter per task", KRON_LORA, 8, SEPARATE, mergings=("mean", "mean, 2r", "sum", "ties", "dare_ties")
)
FEW = (
    ONE_MACHINE,
    LORA_8,
    FEDERATED,
    ALTERNATING,
    federated("federated merged", SEQUENCE, "merged"),
    federated("federated LoRA-8", SEQUENCE, kind=LORA),
    federated("federated, both at once", JOINT),
    MERGED_TASKS,
)
"""What the issue asks for."""

MORE = (
    sequential("LoRA-4", LORA, 4),
    sequential("LoRA-16", LORA, 16),
    sequential("KronA", KRONA),
)
"""Where runs are cheap."""

WAYS = {way.name: way for way in (*FEW, *MORE)}
