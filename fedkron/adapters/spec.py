"""What to train: the one description of an adapter that every other part reads."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fnmatch import fnmatchcase

from fedkron.errors import ConfigError


@dataclass(frozen=True, slots=True)
class AdapterSpec:
    """An adapter kind with its hyper-parameters; the defaults are those of arXiv 2508.01961, section 4.

    `kind` is one of `fedkron.kinds`: `kron_lora` (ΔW = α/r · A ⊗ (B1·B2)), `lora` (α/r · B·A), `krona`
    (α/r · A ⊗ B), or a sum of `terms` Kron-LoRA products with mixing weights that are free (`adakron`) or a
    softmax (`moka`). `d_a1` × `d_a2` is the size of A; `d_a2=None` takes the power of two nearest to
    hidden/200. `targets` are glob patterns on dotted module paths: every linear layer that matches one is
    wrapped, unless it matches one that begins with `!`. `full` names modules without pretrained weights
    (a task head): they are trained in full and never wrapped.

    Raises `ConfigError` for a value out of range.
    """

    kind: str = "kron_lora"
    rank: int = 8
    alpha: float = 32.0
    dropout: float = 0.1
    d_a1: int = 2
    d_a2: int | None = None
    targets: tuple[str, ...] = ("*",)
    full: tuple[str, ...] = ()
    terms: int = 2

    def __post_init__(self) -> None:
        for name in ("rank", "d_a1", "d_a2", "terms"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}: it must be at least 1")
        if not 0 < self.alpha < math.inf:
            raise ConfigError(f"alpha is {self.alpha}: it must be greater than 0 and finite")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is {self.dropout}: it must be at least 0 and below 1")

    def matches(self, path: str) -> bool:
        """Whether the layer at a dotted path is targeted."""
        wanted = [pattern for pattern in self.targets if not pattern.startswith("!")]
        unwanted = [pattern[1:] for pattern in self.targets if pattern.startswith("!")]
        return any(fnmatchcase(path, pattern) for pattern in wanted or ["*"]) and not any(
            fnmatchcase(path, pattern) for pattern in unwanted
        )

    @property
    def scale(self) -> float:
        """The factor α/r in front of the product."""
        return self.alpha / self.rank


def default_d_a2(hidden_size: int) -> int:
    """Power of two nearest to hidden/200 (at least 1): 4 for 768, 16 for 4096 (arXiv 2508.01961)."""
    wanted = hidden_size / 200
    power = 1
    while abs(2 * power - wanted) < abs(power - wanted):
        power *= 2
    return power
