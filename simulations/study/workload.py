"""The data and the training of a federation, whatever travels in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedkron.settings import AUTO, AdapterSettings, Settings, TrainSettings


@dataclass(frozen=True)
class Workload:
    """A federation in which node i has task i mod len(tasks).

    `train_texts` and `test_texts` are per node; each round is one epoch. `max_length` is in tokens,
    `precision` is `train.precision`.
    """

    tasks: tuple[str, ...]
    clients: int
    rounds: int
    train_texts: int
    test_texts: int
    batch_size: int
    max_length: int
    base: str = "demo:all-minilm-l6-v2"
    precision: str = AUTO

    def settings(
        self, sources: Sequence[str], *, kind: str, seed: int, learning_rate: float, folder: str
    ) -> Settings:
        """As a run's settings, with adapters of rank 8; nodes read `sources` and write below `folder`."""
        return Settings(
            base=self.base,
            tasks=",".join(sources),
            num_server_rounds=self.rounds,
            seed=seed,
            output_dir=folder,
            run_name="run",
            device="cpu",
            adapter=AdapterSettings(kind=kind, rank=8),
            train=TrainSettings(
                epochs=1,
                batch_size=self.batch_size,
                learning_rate=learning_rate,
                max_length=self.max_length,
                precision=self.precision,
                max_train_examples=self.train_texts,
                max_test_examples=self.test_texts,
            ),
        )
