"""What the command tests share."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Finished:
    """A run of two tasks on a tiny base, and its exported bundle."""

    run: Path
    base: Path
    bundle: Path
