"""Accuracy against bytes, end to end: what does each codec cost, and what does it save?

Eight nodes with six real tasks (node i has task i mod 6; nodes of one task share its texts) fine-tune
adapters of MiniLM, once per scheme and seed, with the programs and messages of a real run: LoRA-8 as a plain
Flower app sends it, and Kron-LoRA with each codec, with and without error feedback. All schemes see the same
texts, batches and steps. Bytes are serialized Flower messages, training and evaluation, both ways.

Before that, the learning rate of either adapter is chosen, without any loss on the way, on a third of the
training texts that is held out, with a seed of its own.

    python -m simulations.compression --resume runs/compression.jsonl --json runs/compression.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console

from fedkron.demo import DEMO_TASKS, prepare_demo
from fedkron.errors import FedKronError
from simulations.compression_study.jobs import TEST, VALIDATION, Job, Outcome, Workload
from simulations.compression_study.journal import Journal
from simulations.compression_study.pool import processes, run_jobs
from simulations.compression_study.progress import progress
from simulations.compression_study.schemes import SCHEMES, Scheme, lossless
from simulations.compression_study.summary import Line, best_rate, summarize
from simulations.compression_study.tables import Tried, show


@dataclass(frozen=True)
class Study:
    """Which schemes, on which workload, with seeds 0 … seeds − 1; `rates` are tried with `tuning_seed`."""

    workload: Workload
    schemes: tuple[str, ...]
    seeds: int
    rates: tuple[float, ...]
    tuning_seed: int = 100

    @property
    def chosen(self) -> list[Scheme]:
        """The schemes by name, in the order of the table."""
        return [scheme for name, scheme in SCHEMES.items() if name in self.schemes]


WIDE = 120
"""Columns of the tables in a file or pipe."""

FULL = Study(
    Workload(
        tasks=tuple(f"demo:{name}" for name in DEMO_TASKS),
        clients=8,
        rounds=6,
        train_texts=96,
        test_texts=120,
        batch_size=8,
        max_length=48,
    ),
    schemes=tuple(SCHEMES),
    seeds=3,
    rates=(3e-4, 1e-3, 3e-3, 1e-2),
)
QUICK = Study(
    Workload(
        tasks=("demo:trec", "demo:tweets"),
        clients=3,
        rounds=2,
        train_texts=16,
        test_texts=16,
        batch_size=8,
        max_length=32,
    ),
    schemes=("LoRA-8", "fp32", "int4", "int4-no-feedback"),
    seeds=1,
    rates=(1e-3, 3e-3),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print and write; 1 when a federation failed."""
    options = _parser().parse_args(arguments)
    study = _study(options)
    # Standard output belongs to the machine when it is asked for there.
    console = Console(stderr=options.json == "-", width=None if sys.stdout.isatty() else WIDE)
    try:
        prepare_demo()
        with processes(options.workers) as executor:
            tried, runs = run(study, Journal(options.resume), executor, Console(stderr=True))
    except FedKronError as error:
        print(f"compression: {error}", file=sys.stderr)
        return 1
    lines = summarize(runs, {kind: best_rate(outcomes) for kind, outcomes in tried.items()})
    show(lines, tried, console)
    if options.plot:
        from simulations.compression_study.plot import plot

        plot(lines, options.plot)
    if options.json:
        _write(json.dumps(_report(study, tried, lines, runs), indent=1), options.json)
    return 0


def run(
    study: Study, journal: Journal, executor: Executor, console: Console
) -> tuple[Tried, dict[Scheme, list[Outcome]]]:
    """Tune, then run every scheme with every seed: outcomes by adapter kind and rate, and by scheme.

    Raises `RunError` when a federation fails.
    """
    lossless_ones = dict.fromkeys(lossless(scheme) for scheme in study.chosen)
    tuning = {
        (scheme.kind, rate): Job(scheme, study.workload, study.tuning_seed, rate, VALIDATION)
        for scheme in lossless_ones
        for rate in study.rates
    }
    _run_all("tuning", tuning.values(), journal, executor, console)
    tried = {
        scheme.kind: {rate: journal.outcome(tuning[scheme.kind, rate]) for rate in study.rates}
        for scheme in lossless_ones
    }
    jobs = {
        scheme: [
            Job(scheme, study.workload, seed, best_rate(tried[scheme.kind]), TEST)
            for seed in range(study.seeds)
        ]
        for scheme in study.chosen
    }
    # Seed by seed: what an interrupted study has finished can be compared.
    in_order = [job for same_seed in zip(*jobs.values(), strict=True) for job in same_seed]
    _run_all("study", in_order, journal, executor, console)
    return tried, {scheme: [journal.outcome(job) for job in of_scheme] for scheme, of_scheme in jobs.items()}


def _run_all(
    name: str, jobs: Collection[Job], journal: Journal, executor: Executor, console: Console
) -> None:
    missing = [job for job in jobs if job not in journal]
    with progress(console, name, total=len(jobs), done=len(jobs) - len(missing)) as report:
        run_jobs(missing, journal, executor, report)


def _report(
    study: Study, tried: Tried, lines: Sequence[Line], runs: Mapping[Scheme, Sequence[Outcome]]
) -> dict[str, object]:
    return {
        "study": asdict(study),
        "tuning": {
            kind: {f"{rate:g}": asdict(outcome) for rate, outcome in by_rate.items()}
            for kind, by_rate in tried.items()
        },
        "schemes": [
            {**asdict(line), "runs": [asdict(outcome) for outcome in runs[line.scheme]]} for line in lines
        ],
    }


def _study(options: argparse.Namespace) -> Study:
    study = QUICK if options.quick else FULL
    own = {key: value for key in ("tasks", "rounds") if (value := getattr(options, key)) is not None}
    given = {key: value for key in ("schemes", "seeds") if (value := getattr(options, key)) is not None}
    return replace(study, workload=replace(study.workload, **own), **given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m simulations.compression",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", metavar="PATH", help="write all figures as JSON (- for standard output)")
    parser.add_argument("--plot", type=_picture, metavar="FILE", help="draw accuracy over bytes (.svg, .png)")
    parser.add_argument(
        "--resume",
        type=Path,
        metavar="FILE",
        help="append each finished run; repeat none that is there",
    )
    parser.add_argument("--quick", action="store_true", help="four schemes, two tasks, few texts, one seed")
    parser.add_argument("--workers", type=_positive, default=2, help="processes (default 2), one core each")
    parser.add_argument("--seeds", type=_positive, help="runs per scheme (default 3)")
    parser.add_argument("--rounds", type=_positive, help="rounds per run (default 6)")
    parser.add_argument("--schemes", nargs="+", metavar="NAME", choices=SCHEMES, help=", ".join(SCHEMES))
    parser.add_argument("--tasks", nargs="+", metavar="SOURCE", type=str, help="instead of the demo's six")
    return parser


def _picture(text: str) -> Path:
    if Path(text).suffix not in (".svg", ".png"):
        raise argparse.ArgumentTypeError(f"it is {text!r}, it must end with .svg or .png")
    return Path(text)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"it is {number}, it must be at least 1")
    return number


def _write(text: str, target: str) -> None:
    if target == "-":
        print(text)
    else:
        Path(target).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
