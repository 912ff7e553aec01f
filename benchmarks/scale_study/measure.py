"""One workload: a run of ours, the plain Flower app, and the bare training of both."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.scale_study import plain_loop
from benchmarks.scale_study.plain_loop import ROOT, Pure
from benchmarks.scale_study.watch import WORKERS, Taken, watched
from benchmarks.scale_study.workload import Workload
from clients.worker import BASE_LOADED
from fedkron.rundir import CHECKPOINT, FLOWER_LOG, LEDGER, NODES, ROUNDS, SETTINGS

ENVIRONMENT = {
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
    "RAY_DEDUP_LOGS": "0",  # each line of each worker is counted
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}


@dataclass(frozen=True)
class Compared:
    """What a run has taken against its bare training."""

    taken: Taken
    pure: Pure

    @property
    def overhead(self) -> float:
        """What the run took longer than its bare training, start and end included; relative."""
        return self.taken.wall / self.pure.wall - 1

    @property
    def cpu_overhead(self) -> float:
        """The same in CPU time of all processes, which hardly depends on what else the machine does."""
        return self.taken.cpu_seconds / self.pure.cpu - 1


@dataclass(frozen=True)
class Files:
    """Bytes on disk, and how many nodes keep something there."""

    all_nodes: int
    keeping_nodes: int
    checkpoint: int
    ledger: int
    rounds: int


@dataclass(frozen=True)
class Measured:
    """All figures of one workload; `peer` is None where the plain app did not run.

    `start` and `end` are seconds before the first and after the last round; `rounds` are those of each, of
    which the first loads the base in the workers.
    """

    workload: Workload
    ours: Compared
    start: float
    rounds: tuple[float, ...]
    end: float
    base_loads: int
    files: Files
    peer: Compared | None
    pieces: Mapping[str, float]

    @property
    def running_overhead(self) -> float:
        """Overhead of the rounds after the first: without start, loading and end."""
        later = sum(self.rounds[1:])
        share = (len(self.rounds) - 1) / len(self.rounds)
        return later / (share * self.ours.pure.wall) - 1 if later else float("nan")


def measure(workload: Workload, *, with_peer: bool) -> Measured:
    """Run and measure; raises `CalledProcessError` when a run fails."""
    with TemporaryDirectory(prefix="fedkron-scale-") as place:
        output = Path(place)
        taken = watched(_our_command(workload, output), ENVIRONMENT)
        folder = output / "run"
        began = (folder / SETTINGS).stat().st_mtime
        ends = [json.loads(line)["seconds"] for line in (folder / ROUNDS).read_text().splitlines()]
        rounds = tuple(b - a for a, b in zip([0.0, *ends], ends, strict=False))
        start = began - taken.began
        loads = (folder / FLOWER_LOG).read_text(encoding="utf-8").count(BASE_LOADED)
        files = _files(folder)
    workers = taken.processes[WORKERS]
    ours = Compared(taken, plain_loop.measure(workload, "kron_lora", workers))
    peer = _peer(workload) if with_peer else None
    found = watched(
        [sys.executable, "-m", "benchmarks.scale_study.pieces", json.dumps(asdict(workload))], ENVIRONMENT
    )
    return Measured(
        workload,
        ours,
        start,
        rounds,
        taken.wall - start - sum(rounds),
        loads,
        files,
        peer,
        json.loads(found.output.splitlines()[-1]),
    )


def _our_command(workload: Workload, output: Path) -> list[str]:
    from fedkron.settings import run_config

    config = output / "config.toml"
    settings = run_config(workload.settings(output))
    config.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items()))
    words = ["run", str(ROOT), "-c", str(config), "-n", str(workload.nodes), "--quiet", "--json"]
    return [sys.executable, "-m", "fedkron.cli", *words]


def _peer(workload: Workload) -> Compared:
    with TemporaryDirectory(prefix="fedkron-scale-") as output:
        order = json.dumps({"workload": asdict(workload), "output": output})
        taken = watched([sys.executable, "-m", "benchmarks.scale_study.peer", order], ENVIRONMENT)
    return Compared(taken, plain_loop.measure(workload, "lora", taken.processes[WORKERS]))


def _files(folder: Path) -> Files:
    nodes = [path for path in (folder / NODES).iterdir() if any(path.rglob("*.safetensors"))]
    kept = sum(path.stat().st_size for path in (folder / NODES).rglob("*") if path.is_file())
    sizes = [(folder / name).stat().st_size for name in (CHECKPOINT, LEDGER, ROUNDS)]
    return Files(kept, len(nodes), *sizes)
