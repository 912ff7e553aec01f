"""What the study runs: one federation per scheme and seed, and before that one per learning rate to try."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedkron.settings import AdapterSettings, Settings, TrainSettings
from simulations.compression_study.schemes import Scheme

TEST, VALIDATION = "test", "validation"
"""What a federation is measured on (keys of `data.SPLITS`)."""


@dataclass(frozen=True)
class Workload:
    """A federation, whatever travels in it: node i has task i mod len(tasks).

    `train_texts` and `test_texts` are per node; each round is one epoch. `max_length` is in tokens.
    """

    tasks: tuple[str, ...]
    clients: int
    rounds: int
    train_texts: int
    test_texts: int
    batch_size: int
    max_length: int
    base: str = "demo:all-minilm-l6-v2"


@dataclass(frozen=True)
class Job:
    """One federation from its first to its last round."""

    scheme: Scheme
    workload: Workload
    seed: int
    learning_rate: float
    split: str

    def settings(self, sources: Sequence[str], folder: str) -> Settings:
        """As a run's settings, with the tasks read from `sources`; nodes write below `folder`."""
        load = self.workload
        return Settings(
            base=load.base,
            tasks=",".join(sources),
            num_server_rounds=load.rounds,
            seed=self.seed,
            output_dir=folder,
            run_name="run",
            device="cpu",
            adapter=AdapterSettings(kind=self.scheme.kind, rank=8),
            train=TrainSettings(
                epochs=1,
                batch_size=load.batch_size,
                learning_rate=self.learning_rate,
                max_length=load.max_length,
                max_train_examples=load.train_texts,
                max_test_examples=load.test_texts,
            ),
        )


@dataclass(frozen=True)
class Outcome:
    """What came of a job. Accuracy in [0, 1] and loss in nats: one tuple per round, one entry per node.

    `up` and `down` are serialized Flower messages in bytes, all nodes together, one entry per round.
    """

    tasks: tuple[str, ...]
    accuracy: tuple[tuple[float, ...], ...]
    loss: tuple[tuple[float, ...], ...]
    head_only: tuple[float, ...]
    up: tuple[int, ...]
    down: tuple[int, ...]
    seconds: float
