"""How the adapters of both tasks become one, by name."""

from __future__ import annotations

from simulations.groups_study.mergings import mergings

TASKS = 2
MERGINGS = {merging.name: merging for merging in mergings(TASKS)}
"""Each keeps α/r."""
