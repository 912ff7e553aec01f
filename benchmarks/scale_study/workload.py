"""What is simulated: how many nodes, how many of them take part in a round, and how many texts they have."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from fedkron.demo import DEMO_TASKS
from fedkron.settings import AdapterSettings, Settings, TrainSettings


@dataclass(frozen=True)
class Workload:
    """Nodes with a share of the demo's tasks each; `fraction` of them train and evaluate in each round."""

    nodes: int
    fraction: float
    rounds: int
    train_texts: int
    test_texts: int

    @property
    def taking_part(self) -> int:
        """Nodes in a round, as Flower rounds."""
        return max(int(self.nodes * self.fraction), 1)

    def settings(self, output: Path, *, kind: str = "kron_lora") -> Settings:
        """Settings of a run of this workload with an adapter of this kind, below a folder."""
        settings = Settings(
            tasks=",".join(f"demo:{task}" for task in DEMO_TASKS),
            num_server_rounds=self.rounds,
            fraction_train=self.fraction,
            fraction_evaluate=self.fraction,
            output_dir=str(output),
            run_name="run",
            device="cpu",
            adapter=AdapterSettings(kind=kind),
        )
        train = TrainSettings(
            batch_size=16, max_train_examples=self.train_texts, max_test_examples=self.test_texts
        )
        return replace(settings, train=train)


WORKLOADS = (
    Workload(10, 1.0, rounds=6, train_texts=48, test_texts=24),
    Workload(100, 0.5, rounds=6, train_texts=48, test_texts=24),
    Workload(1000, 0.03, rounds=6, train_texts=10, test_texts=24),
)
QUICK_WORKLOADS = (Workload(6, 0.5, rounds=2, train_texts=8, test_texts=8),)
