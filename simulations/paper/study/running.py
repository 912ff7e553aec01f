"""The order of the jobs: rates, then seed after seed, so that a part of a study is a smaller one."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial

from rich.console import Console

from simulations.paper.study.adapters import TUNED, Adapter
from simulations.paper.study.cases import Case
from simulations.paper.study.jobs import Job, Outcome, describe, outcome_of, together
from simulations.study.data import TEST, VALIDATION
from simulations.study.journal import Journal
from simulations.study.progress import run_missing
from simulations.study.statistics import best_rate


@dataclass(frozen=True)
class Plan:
    """Which adapters are trained in which cases, with seeds 0 … seeds − 1.

    `rates` are tried per adapter kind, in `tuning_rounds` epochs with `tuning_seed`, on training texts that
    are held out; a single one is taken as it is.
    """

    cases: tuple[Case, ...]
    adapters: tuple[Adapter, ...]
    seeds: int
    rates: Mapping[str, tuple[float, ...]]
    tuning_rounds: int
    tuning_seed: int = 100

    def tuning(self, case: Case, kind: str) -> dict[float, list[Job]]:
        """The jobs that say which learning rate a kind of adapter takes in a case, by rate."""
        rates = self.rates[kind]
        loads = [replace(load, rounds=self.tuning_rounds) for load in case.tuning] if len(rates) > 1 else []
        return {
            rate: [Job(TUNED[kind], case.way, load, self.tuning_seed, rate, VALIDATION) for load in loads]
            for rate in rates
        }

    @property
    def kinds(self) -> list[str]:
        """The kinds of adapters, each once."""
        return list(dict.fromkeys(adapter.kind for adapter in self.adapters))


@dataclass(frozen=True)
class Result:
    """All outcomes of a case: by kind of adapter, those of the rates tried; by adapter, one per seed."""

    case: Case
    tried: Mapping[str, Mapping[float, Outcome]]
    rates: Mapping[str, float]
    runs: Mapping[Adapter, Sequence[Outcome]]


def run(plan: Plan, journal: Journal[Job, Outcome], executor: Executor, console: Console) -> list[Result]:
    """Do all jobs that are not in the journal: seed 0 in all cases, then seed 1, …

    Raises `RunError` when one fails; what has finished by then is in the journal.
    """
    finish = partial(
        run_missing, journal=journal, work=outcome_of, describe=describe, executor=executor, console=console
    )
    for seed in range(plan.seeds):
        for case in plan.cases:
            if tuning := _tuning_jobs(plan, case):
                finish(f"{case.name}, tuning", tuning)
            rates = _rates(plan, case, journal)
            jobs = [job for adapter in plan.adapters for job in _runs(case, adapter, seed, rates)]
            finish(f"{case.name}, seed {seed}", jobs)
    return finished(plan, journal)


def finished(plan: Plan, journal: Journal[Job, Outcome]) -> list[Result]:
    """What the journal has of a plan: of each case the seeds that all adapters have finished.

    Cases whose rates are not tuned, or that have no such seed, are left out.
    """
    return [result for case in plan.cases if (result := _result(plan, case, journal)) is not None]


def _result(plan: Plan, case: Case, journal: Journal[Job, Outcome]) -> Result | None:
    if not _all_in(_tuning_jobs(plan, case), journal):
        return None
    rates = _rates(plan, case, journal)
    seeds = [{a: _runs(case, a, seed, rates) for a in plan.adapters} for seed in range(plan.seeds)]
    complete = [jobs for jobs in seeds if all(_all_in(of_adapter, journal) for of_adapter in jobs.values())]
    if not complete:
        return None
    tried = {kind: _tried(plan, case, kind, journal) for kind in plan.kinds}
    runs = {a: [_outcome(jobs[a], journal) for jobs in complete] for a in plan.adapters}
    return Result(case, tried, rates, runs)


def _runs(case: Case, adapter: Adapter, seed: int, rates: Mapping[str, float]) -> list[Job]:
    return [Job(adapter, case.way, load, seed, rates[adapter.kind], TEST) for load in case.workloads]


def _tuning_jobs(plan: Plan, case: Case) -> list[Job]:
    return [job for kind in plan.kinds for jobs in plan.tuning(case, kind).values() for job in jobs]


def _rates(plan: Plan, case: Case, journal: Journal[Job, Outcome]) -> dict[str, float]:
    return {
        kind: best_rate(tried) if (tried := _tried(plan, case, kind, journal)) else plan.rates[kind][0]
        for kind in plan.kinds
    }


def _tried(plan: Plan, case: Case, kind: str, journal: Journal[Job, Outcome]) -> dict[float, Outcome]:
    return {rate: _outcome(jobs, journal) for rate, jobs in plan.tuning(case, kind).items() if jobs}


def _outcome(jobs: Sequence[Job], journal: Journal[Job, Outcome]) -> Outcome:
    return together([journal.outcome(job) for job in jobs])


def _all_in(jobs: Collection[Job], journal: Journal[Job, Outcome]) -> bool:
    return all(job in journal for job in jobs)
