"""Several adapters on one MiniLM: the price of switching, and of a batch whose rows use different ones."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn

from benchmarks.adapter_contest.timing import Spread, interleaved, ratio
from fedkron.adapters import AdapterBank, AdapterSpec, adapted_layers, adapter_layout, adapter_state, attach

ADAPTERS, ROWS, TOKENS = 6, 24, 32
SWITCH, ROW_WISE, BY_ADAPTER, ONE = "switch", "rows of one batch", "a batch for each adapter", "one adapter"


@dataclass(frozen=True)
class BankFigures:
    """Microseconds of a switch; time of a mixed batch over that of separate batches, and of one adapter."""

    layers: int
    switch_us: Spread
    mixed_over_separate: Spread
    mixed_over_one: Spread


def measure_bank(base: nn.Module, device: torch.device, budget: float) -> BankFigures:
    """Time a bank of adapters on `base`, a bare encoder: forward passes, the rows of each adapter mixed."""
    base = base.eval()
    bank = AdapterBank(base)
    for number in range(ADAPTERS):
        model = attach(copy.deepcopy(base), AdapterSpec())
        for _, layer in adapted_layers(model):
            for factor in layer.factors().values():
                nn.init.normal_(factor, std=0.02)
        bank.add(str(number), adapter_layout(model, ""), adapter_state(model))
    layers = sum(1 for _ in adapted_layers(model))
    ids = torch.randint(1000, 30000, (ROWS, TOKENS), device=device)
    names = [str(row % ADAPTERS) for row in range(ROWS)]

    def switch() -> None:
        bank.activate("0" if bank.active == "1" else "1")

    @torch.inference_mode()
    def row_wise() -> None:
        with bank.rows(names):
            base(ids)

    @torch.inference_mode()
    def by_adapter() -> None:
        for number in range(ADAPTERS):
            bank.activate(str(number))
            base(ids[number::ADAPTERS])

    @torch.inference_mode()
    def one() -> None:
        bank.activate("0")
        base(ids)

    # Alone: it is so quick that it has to be repeated, and the others would be with it.
    switches = interleaved({SWITCH: switch}, device, budget)[SWITCH]
    seconds = interleaved({ROW_WISE: row_wise, BY_ADAPTER: by_adapter, ONE: one}, device, budget)
    return BankFigures(
        layers,
        Spread.of([1e6 * second for second in switches]),
        ratio(seconds, ROW_WISE, BY_ADAPTER),
        ratio(seconds, ROW_WISE, ONE),
    )


def show_bank(figures: BankFigures, console: Console) -> None:
    """Print the figures."""
    table = Table(
        title=f"{ADAPTERS} adapters on one MiniLM ({figures.layers} layers), {ROWS} texts × {TOKENS} tokens",
        title_justify="left",
        box=box.SIMPLE,
        show_header=False,
    )
    table.add_row("to switch, µs", str(figures.switch_us))
    table.add_row(
        "mixed batch over six batches of one adapter each, forward", str(figures.mixed_over_separate)
    )
    table.add_row("mixed batch over the same with one adapter, forward", str(figures.mixed_over_one))
    console.print(table)
