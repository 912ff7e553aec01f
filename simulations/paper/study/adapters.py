"""The adapters that are compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedkron.settings import AdapterSettings

KRON_LORA, LORA, KRONA = "kron_lora", "lora", "krona"


@dataclass(frozen=True)
class Adapter:
    """One line of a table; `kind` and sizes are those of `fedkron.settings.AdapterSettings`."""

    name: str
    kind: str
    rank: int = 8
    d_a1: int = 2
    d_a2: int = 0

    def settings(self) -> AdapterSettings:
        """As a part of a run's settings: α = 32 and dropout 0.1, as in the paper."""
        return AdapterSettings(kind=self.kind, rank=self.rank, d_a1=self.d_a1, d_a2=self.d_a2)


OURS = Adapter("Kron-LoRA", KRON_LORA)
REFERENCE = Adapter("LoRA-8", LORA, rank=8)
"""What the others are compared with."""

# About as many parameters as Kron-LoRA on MiniLM. With 2 × 2 in A, as Kron-LoRA has them, B would be a
# quarter of the weight.
SMALL_KRONA = Adapter("KronA", KRONA, d_a1=8, d_a2=8)

COMPARED = (OURS, Adapter("LoRA-4", LORA, rank=4), REFERENCE, Adapter("LoRA-16", LORA, rank=16), SMALL_KRONA)


TUNED: Mapping[str, Adapter] = {KRON_LORA: OURS, LORA: REFERENCE, KRONA: SMALL_KRONA}
"""The adapter of each kind whose learning rate all of that kind take."""
