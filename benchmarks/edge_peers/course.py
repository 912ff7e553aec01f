"""How much is measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.edge_peers.turns import Effort


@dataclass(frozen=True)
class Course:
    """`batches` are (texts, tokens), `encodings` those of slots, `forms` 8-bit ones of the base.

    `bundles` with 4-bit adapters, by d_A2, are filled with `numbers` of adapters, and ONNX Runtime with
    `larger_numbers` of its own, larger ones; the first bundle is switched (among `switched` adapters) and
    started, too. `weighed` are further bundles, by base form and slot encoding. `starts` are processes of
    each kind, `optimum` a Python with optimum-onnx.
    """

    batches: tuple[tuple[int, int], ...]
    encodings: tuple[str, ...]
    forms: tuple[str, ...]
    effort: Effort
    switches: Effort
    switched: int
    numbers: tuple[int, ...]
    larger_numbers: tuple[int, ...]
    bundles: tuple[int, ...]
    weighed: tuple[tuple[str, str], ...]
    starts: int
    threads: int = 1
    optimum: Path | None = None


FULL = Course(
    batches=((1, 32), (1, 128), (8, 32)),
    encodings=("fp32", "fp16", "int8", "int4"),
    forms=("int8", "nbits8"),
    effort=Effort(rounds=15, calls=5),
    switches=Effort(rounds=9, calls=1),
    switched=64,
    numbers=(1, 100, 1000),
    larger_numbers=(1, 100),
    bundles=(2, 4),
    weighed=(("fp32", "fp32"), ("int8", "int4"), ("nbits8", "int4")),
    starts=9,
)
QUICK = Course(
    batches=((1, 32), (8, 32)),
    encodings=("fp32", "int4"),
    forms=("int8",),
    effort=Effort(rounds=3, calls=2),
    switches=Effort(rounds=3, calls=1),
    switched=16,
    numbers=(20, 200),
    larger_numbers=(5, 25),
    bundles=(2,),
    weighed=(),
    starts=1,
)
