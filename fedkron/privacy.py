"""The privacy budget of a run: which ε its nodes have spent, at a fixed δ.

All releases are Gaussian mechanisms, told by their noise multiplier: the standard deviation of the noise,
divided by the most that one node can change (in L2 norm). Several together are exactly one whose
multiplier is (Σ 1/zᵢ²)^(−1/2) (Dong, Roth & Su 2022, arXiv 1905.02383, corollary 3.3), and ε of that one is
that of the analytic Gaussian mechanism (Balle & Wang 2018, arXiv 1805.06530), from Google's dp-accounting.

No amplification by sampling is claimed: the clients of a round are drawn from the run's seed, which is no
secret. A node is charged for the rounds in which it was asked, and for no others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fedkron.errors import ConfigError


@dataclass(frozen=True)
class Spent:
    """What the node that was asked most often has spent so far; other nodes have spent no more.

    `epsilon` at `delta` is None without noise: then nothing is guaranteed. `rounds` is how often that node
    was asked, `clipping_norm` the norm of this round.
    """

    epsilon: float | None
    delta: float
    rounds: int
    clipping_norm: float


class Budget:
    """Counts in how many rounds each node was asked. Each such round is a release by each of `multipliers`.

    Raises `ConfigError` where dp-accounting is not installed.
    """

    def __init__(self, multipliers: Sequence[float], delta: float) -> None:
        _accounting()
        self._multipliers = tuple(multipliers)
        self._delta = delta
        self._rounds: Counter[int] = Counter()

    def charge(self, nodes: Collection[int], clipping_norm: float) -> Spent:
        """Another round of these nodes."""
        self._rounds.update(set(nodes))
        rounds = max(self._rounds.values(), default=0)
        return Spent(epsilon(self._multipliers * rounds, self._delta), self._delta, rounds, clipping_norm)

    def snapshot(self) -> dict[str, int]:
        """In how many rounds each node was asked: for `restore`."""
        return {str(node): rounds for node, rounds in self._rounds.items()}

    def restore(self, snapshot: Mapping[str, int], renamed: Mapping[int, int]) -> None:
        """Go on with a run; `renamed` has today's ids of nodes that are still there.

        Each node is charged for one round more: the one that was interrupted may have been released, and is
        released again with other noise.
        """
        self._rounds = Counter(
            {renamed.get(int(node), int(node)): rounds + 1 for node, rounds in snapshot.items()}
        )


class Charges(Protocol):
    """Says what rounds cost their nodes."""

    def charge(self, nodes: Collection[int]) -> Spent:
        """A round of these nodes begins."""

    def snapshot(self) -> dict[str, Any]:
        """What it knows, as plain values: for `restore`."""

    def restore(self, snapshot: Mapping[str, Any], renamed: Mapping[int, int]) -> None:
        """Go on with a run; `renamed` has today's ids of nodes that are still there."""


@dataclass(frozen=True)
class LocalCharges:
    """For nodes that clip to a norm and add noise themselves."""

    budget: Budget
    clipping_norm: float

    def charge(self, nodes: Collection[int]) -> Spent:
        """A round of these nodes begins."""
        return self.budget.charge(nodes, self.clipping_norm)

    def snapshot(self) -> dict[str, Any]:
        """The budget."""
        return self.budget.snapshot()

    def restore(self, snapshot: Mapping[str, Any], renamed: Mapping[int, int]) -> None:
        """Go on with this budget."""
        self.budget.restore(snapshot, renamed)


def epsilon(multipliers: Sequence[float], delta: float) -> float | None:
    """ε of Gaussian releases with these noise multipliers together; None when one has no noise."""
    if not all(multipliers):
        return None
    if not multipliers:
        return 0.0
    together = sum(multiplier**-2 for multiplier in multipliers) ** -0.5
    return float(_accounting().get_epsilon_gaussian(together, delta))


def _accounting() -> Any:  # noqa: ANN401  # the package has no types
    try:
        import dp_accounting
    except ImportError as error:
        raise ConfigError(
            "privacy.kind needs dp-accounting, which is not installed: pip install 'fedkron[privacy]'"
        ) from error
    return dp_accounting
