"""What is compared: an adapter kind, and how the server combines what the nodes have trained."""

from __future__ import annotations

from dataclasses import dataclass

KRON_LORA, LORA = "kron_lora", "lora"


@dataclass(frozen=True)
class Way:
    """One line of the comparison. `aggregation` is the name that a run config uses."""

    name: str
    kind: str
    aggregation: str


REFERENCE = Way("factorwise", KRON_LORA, "factorwise")
"""What the others are compared with: the weighted mean of each factor."""

LORA_REFERENCE = Way("lora-factorwise", LORA, "factorwise")
"""The same with plain LoRA: what FedAvg does."""

ALL = (
    REFERENCE,
    *(Way(name, KRON_LORA, name) for name in ("merged", "merged_exact", "alternating", "stacked")),
    LORA_REFERENCE,
    Way("lora-merged", LORA, "merged"),
)
WAYS = {way.name: way for way in ALL}
