"""Tables 1 and 2 of the paper at a size that fits two CPU cores: accuracy of Kron-LoRA, LoRA and KronA.

    centralised  each task for itself, no exchange
    federated    five nodes, a task each, one adapter: one epoch a round, 2-bit changes both ways
    shared       ten nodes, two for each task, each with half of its texts

Every adapter kind gets, centralised and federated, the learning rate that is best for it on training texts
that are held out. All adapters see the same texts in the same order for as many steps. Each node and task
has a head of its own. Seeds differ in texts, initial adapter and order.

    python -m simulations.paper.accuracy --data FOLDER --resume runs/paper.jsonl --json runs/accuracy.json
    python -m simulations.paper.accuracy --data FOLDER --base smollm2 --resume runs/smollm2.jsonl
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from fedkron.errors import ConfigError, FedKronError
from simulations.paper.study.adapters import COMPARED, REFERENCE, Adapter
from simulations.paper.study.bases import prepare_base
from simulations.paper.study.cases import CASES
from simulations.paper.study.command import chances, paper_parser, run_plan
from simulations.paper.study.parameters import layouts
from simulations.paper.study.plot import plot_parameters
from simulations.paper.study.running import Result
from simulations.paper.study.sizes import Size, plan_for, size_for
from simulations.paper.study.summary import Line, head_only, summarize
from simulations.paper.study.tables import show
from simulations.paper.tasks import task_sources
from simulations.study.command import tables_console, write


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print and write; 1 when a job failed, or the data cannot be had."""
    options = _parser().parse_args(arguments)
    console = tables_console(options.json)
    try:
        size = size_for(options)
        adapters = _chosen(size, options.adapters)
        sources = task_sources(options.data)
        base = prepare_base(options.base)
        cases = options.cases or size.cases
        plan = plan_for(size, base, sources, options, cases=cases, adapters=adapters)
        results = run_plan(plan, options)
    except FedKronError as error:
        print(f"accuracy: {error}", file=sys.stderr)
        return 1
    sizes = layouts(base, plan.adapters)
    chance = chances(plan)
    lines = {result.case.name: summarize(result, sizes, REFERENCE) for result in results}
    for result in results:
        show(result, lines[result.case.name], chance, console)
    if options.plot:
        plot_parameters(lines, options.plot)
    if options.json:
        write(json.dumps(_report(results, lines, chance), indent=1), options.json)
    return 0


def _chosen(size: Size, names: Sequence[str] | None) -> list[Adapter]:
    known = {adapter.name: adapter for adapter in size.adapters}
    if missing := [name for name in names or () if name not in known]:
        raise ConfigError(f"there is no adapter {missing[0]!r} at this size: choose from {', '.join(known)}")
    return [known[name] for name in names or known]


def _report(
    results: Sequence[Result], lines: Mapping[str, Sequence[Line]], chance: Mapping[str, float]
) -> dict[str, object]:
    return {
        result.case.name: {
            "case": asdict(result.case),
            "chance": chance,
            "head_only": head_only(result),
            "adapters": [
                {**asdict(line), "runs": [asdict(outcome) for outcome in result.runs[line.adapter]]}
                for line in lines[result.case.name]
            ],
        }
        for result in results
    }


def _parser() -> argparse.ArgumentParser:
    parser = paper_parser(
        "python -m simulations.paper.accuracy",
        __doc__,
        quick="two tasks, Kron-LoRA and LoRA-8, few texts, one seed",
    )
    parser.add_argument("--cases", nargs="+", metavar="NAME", choices=CASES, help=", ".join(CASES))
    adapters = [adapter.name for adapter in COMPARED]
    parser.add_argument("--adapters", nargs="+", metavar="NAME", choices=adapters, help=", ".join(adapters))
    return parser


if __name__ == "__main__":
    sys.exit(main())
