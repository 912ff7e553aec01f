"""One factor after the other: a round trains and sends only one of them, so that the plain mean is exact.

ΔW = (α/r) · A ⊗ (B1·B2) is linear in each factor while the others are the same for everybody: the mean of
that factor is the mean of the ΔW. This is RoLoRA (Chen et al. 2025, arXiv 2502.01755), which alternates
between LoRA's two factors, carried over to the three of Kron-LoRA. A round costs the bytes of what it trains.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from flwr.app import ArrayRecord

from fedkron.aggregation import FactorwiseMean
from fedkron.errors import AdapterError
from fedkron.exchange import Tree
from fedkron.flower.global_adapter import ARRAYS, FOR_ALL, Answer, Combined, Introduction, Sent, take_all
from fedkron.flower.wire import to_state
from fedkron.layout import AdapterLayout

ALTERNATING = "alternating"
"""Its name among the aggregations."""

TURNS: Mapping[str, tuple[str, ...]] = {
    "kron_lora": ("B1", "B2", "B1", "B2", "A"),
    "lora": ("lora_B", "lora_A"),
    "krona": ("B", "A"),
    "adakron": ("B1", "B2", "A", "gates"),
}
"""The factors of each kind in the order of their turns: first the one that starts at zero, because the others
have no gradient until it has moved. A is a handful of numbers a layer, and its turn comes less often. MoKA's
ΔW is not linear in its gates, which are behind a softmax."""

DENSE = f"{ARRAYS}.dense"
"""Key of the tensors that are trained in full, such as a shared head: in every round."""


class Alternating:
    """The adapter in a record for each factor. Raises `AdapterError` for a kind without turns."""

    def __init__(self, layout: AdapterLayout) -> None:
        kinds = sorted({module.kind for module in layout.modules})
        if len(kinds) != 1 or kinds[0] not in TURNS:
            raise AdapterError(
                f"alternating aggregation knows adapters of one kind out of {', '.join(TURNS)}, "
                f"this one is {', '.join(kinds) or 'without factors'}: use factorwise aggregation"
            )
        self._layout = layout
        self._turns = TURNS[kinds[0]]
        self._names = {
            f"{ARRAYS}.{factor}": [module.tensor_name(factor) for module in layout.modules]
            for factor in self._turns
        }
        if layout.dense:
            self._names[DENSE] = [tensor.name for tensor in layout.dense]
        self._round = 0
        self._records: dict[str, ArrayRecord] = {}

    def strangers(self, nodes: Sequence[int]) -> list[int]:  # noqa: ARG002
        """Nobody: all get the same."""
        return []

    def meet(self, node: int, introduction: Introduction) -> None:
        """Nothing depends on the node."""

    def adopt(self, round_: int, arrays: ArrayRecord) -> None:
        """Go on from this adapter."""
        self._round = round_
        self._records = {
            key: ArrayRecord({name: arrays[name] for name in names}) for key, names in self._names.items()
        }

    def sent(self, node: int) -> Sent:  # noqa: ARG002
        """All factors (a node that has one is sent next to nothing of it), and whose turn it is."""
        return Sent(self._layout, self._records, self._trains)

    def combine(self, answers: Iterable[Answer]) -> Combined:
        """The mean of what was trained; the rest stays as it is."""
        adapter = {
            name: values for record in self._records.values() for name, values in to_state(record).items()
        }
        part = {name: adapter[name] for key in self._trains for name in self._names[key]}
        mean = FactorwiseMean(self._layout.of_state(part))

        def take(answer: Answer) -> None:
            opened = [answer.uploads[key].opened() for key in self._trains]
            mean.add({name: values for state in opened for name, values in state.items()}, answer.weight)

        refused = take_all(answers, take)
        adapter |= mean.finish().adapter
        return Combined({tensor.name: adapter[tensor.name] for tensor in self._layout.tensors}, None, refused)

    def held(self) -> Mapping[str, Sent]:
        """The one adapter."""
        return {FOR_ALL: self.sent(0)}

    def group_of(self, node: int) -> str:  # noqa: ARG002
        """There is only one."""
        return FOR_ALL

    def snapshot(self) -> dict[str, Tree]:
        """Nothing: the round says whose turn it is."""
        return {}

    def restore(self, snapshot: Mapping[str, Tree], arrays: ArrayRecord, renamed: Mapping[int, int]) -> None:  # noqa: ARG002
        """Go on with this adapter."""
        self.adopt(self._round, arrays)

    @property
    def _trains(self) -> tuple[str, ...]:
        # Rounds count from 1; the broadcast of round 0 is that of nobody's turn yet.
        turn = f"{ARRAYS}.{self._turns[(self._round - 1) % len(self._turns)]}"
        return (turn, DENSE) if self._layout.dense else (turn,)
