"""What poisoned updates do to an adapter, and which robust rule keeps them out at which price.

The server and the nodes run the programs of a real run, with the default codec both ways; attackers take
the place of the first nodes, train with the nodes' own code and send what they make of it through the same
seam. Ten nodes share one task (TREC) and one head, at random (iid) or with label proportions from
Dirichlet(0.3). Attacks on 20 % and 40 % of the nodes:

    sign-flip   −3 times the honest update          label-flip  trains on wrong labels
    scaled      10 times the honest update          backdoor    trains on a trigger word for one label
    random      Gaussian of 10 times its norm       nan         NaN, through the seam or past it

Each rule works on the factors and on the merged ΔW, with `robust.attackers` as large as the attack (0.2
where there is none; for Krum at most 0.3, all that ten nodes allow for).

    python -m simulations.poison --resume runs/poison.jsonl --json runs/poison.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, replace

from rich.console import Console

from fedkron.aggregation import ROBUST_RULES
from fedkron.demo import prepare_demo
from fedkron.errors import FedKronError
from fedkron.settings import PartitionSettings
from simulations.poison_study.attacks import BACKDOOR, REFUSED
from simulations.poison_study.jobs import Attack, Case, Defence, Job, Outcome, describe, outcome_of
from simulations.poison_study.summary import Line, summarize
from simulations.poison_study.tables import show
from simulations.study.command import study_parser, tables_console, write
from simulations.study.journal import Journal
from simulations.study.pool import processes
from simulations.study.progress import run_missing
from simulations.study.workload import Workload

NOBODY = Attack()
SPACES = ("factorwise", "merged")


@dataclass(frozen=True)
class Setting:
    """Which attacks each defence meets in a case."""

    case: Case
    attacks: tuple[Attack, ...]


@dataclass(frozen=True)
class Study:
    """Which defences, in which settings, with seeds 0 … seeds − 1; `refused` meet the plain mean only."""

    settings: tuple[Setting, ...]
    defences: tuple[Defence, ...]
    refused: tuple[Attack, ...]
    seeds: int
    norm_limit: float = 0.0

    def jobs(self, setting: Setting, seed: int) -> list[Job]:
        """All federations of a setting with one seed, the plain mean's first."""
        jobs = [
            Job(defence, attack, setting.case, seed, self.norm_limit)
            for attack in setting.attacks
            for defence in self.defences
        ]
        plain = Defence("mean", "factorwise")
        if setting is self.settings[0] and seed == 0:
            jobs += [Job(plain, attack, setting.case, seed, self.norm_limit) for attack in self.refused]
        return jobs


IID = Case(
    "iid",
    Workload(
        tasks=("demo:trec",),
        clients=10,
        rounds=4,
        train_texts=40,
        test_texts=500,
        batch_size=10,
        max_length=20,
    ),
    head_labels="abbreviation,description,entity,human,location,number",
    learning_rate=5e-3,
    head_learning_rate=1e-2,
    targets="encoder.layer.4.*,encoder.layer.5.*",
)
DIRICHLET = replace(IID, name="dirichlet", partition=PartitionSettings("dirichlet", alpha=0.3))
ATTACKED = ("sign-flip", BACKDOOR, "scaled", "label-flip", "random")
FULL = Study(
    (
        Setting(IID, (NOBODY, *(Attack(name, share) for name in ATTACKED for share in (0.2, 0.4)))),
        Setting(DIRICHLET, (NOBODY, Attack("sign-flip", 0.2), Attack(BACKDOOR, 0.2))),
    ),
    defences=tuple(Defence(rule, space) for space in SPACES for rule in ROBUST_RULES),
    refused=tuple(Attack(name, 0.2) for name in REFUSED),
    seeds=1,
)

_FEW = replace(IID, workload=replace(IID.workload, clients=5, rounds=1, train_texts=10, test_texts=20))
QUICK = Study(
    (Setting(_FEW, (NOBODY, Attack("sign-flip", 0.2), Attack(BACKDOOR, 0.4))),),
    defences=(Defence("mean", "factorwise"), Defence("median", "factorwise"), Defence("krum", "merged")),
    refused=FULL.refused,
    seeds=1,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print and write; 1 when a federation failed."""
    options = _parser().parse_args(arguments)
    console = tables_console(options.json)
    study = _study(options)
    try:
        prepare_demo()
        with processes(options.workers) as executor:
            lines = run(study, Journal(Outcome, options.resume), executor, Console(stderr=True))
    except FedKronError as error:
        print(f"poison: {error}", file=sys.stderr)
        return 1
    show(lines, console)
    if options.plot:
        from simulations.poison_study.plot import plot

        plot(lines, options.plot)
    if options.json:
        report = {"study": asdict(study), "lines": [asdict(line) for line in lines]}
        write(json.dumps(report, indent=1), options.json)
    return 0


def run(study: Study, journal: Journal[Job, Outcome], executor: Executor, console: Console) -> list[Line]:
    """Seed by seed, setting by setting. Raises `RunError` when too many nodes of a federation fail."""
    done: list[Job] = []
    for seed in range(study.seeds):
        for setting in study.settings:
            jobs = study.jobs(setting, seed)
            run_missing(
                f"{setting.case.name}, seed {seed}",
                jobs,
                journal,
                work=outcome_of,
                describe=describe,
                executor=executor,
                console=console,
            )
            done += jobs
    return summarize({job: journal.outcome(job) for job in done})


def _study(options: argparse.Namespace) -> Study:
    study = QUICK if options.quick else FULL

    def with_rounds(setting: Setting) -> Setting:
        load = setting.case.workload
        workload = replace(load, rounds=options.rounds or load.rounds)
        return replace(setting, case=replace(setting.case, workload=workload))

    return replace(
        study,
        settings=tuple(map(with_rounds, study.settings)),
        seeds=options.seeds or study.seeds,
        norm_limit=options.norm_limit,
    )


def _parser() -> argparse.ArgumentParser:
    parser = study_parser(
        "python -m simulations.poison",
        __doc__,
        quick="five nodes, one round, few texts, three defences",
        seeds=FULL.seeds,
        rounds=IID.workload.rounds,
    )
    parser.add_argument(
        "--norm-limit",
        type=float,
        default=0.0,
        help="admission.norm-limit of all runs (default 0: the rules have to do without)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
