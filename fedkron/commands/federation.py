"""`fedkron federation`: a run on a real federation of processes on this machine, from keys to teardown."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext

from fedkron.commands.interruption import interruptible
from fedkron.commands.run import add_run_options, federate, free_run_folder, print_result, progress_of
from fedkron.commands.run_settings import asked_settings, localized
from fedkron.demo import resolve_task
from fedkron.errors import ConfigError, RunError
from fedkron.rundir import LOGS
from fedkron.settings import Settings


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "federation",
        help="run on a real federation of processes on this machine",
        description="Start a SuperLink with TLS, and SuperNodes that it knows by their keys, each a process "
        "with its own data; run the app on them; end everything. Processes that die are started again. Exit "
        "code 0 only if Flower says that the run completed. docs/deploy.md: the same on several machines.",
    )
    add_run_options(parser, "SuperNodes (default: one per task)")
    parser.set_defaults(command=federation)


def federation(options: argparse.Namespace) -> int:
    """Run, and print the report. Raises `RunError` when the run did not complete."""
    from fedkron.deploy.local import local_federation

    settings, usual = asked_settings(options)
    settings = localized(settings)
    nodes = options.nodes if options.nodes is not None else usual or len(settings.task_sources)
    if nodes < 1:
        raise ConfigError(f"--nodes is {nodes}: it must be at least 1")
    folder = free_run_folder(settings)
    progress = progress_of(options, settings, nodes)
    say = (lambda _: None) if options.quiet else _say
    configs = node_configs(settings, nodes)
    say(f"starting a SuperLink and {nodes} SuperNodes; their logs are in {folder / LOGS}")
    with interruptible(), local_federation(configs, folder / LOGS, say) as running:
        log = federate(options.app, settings, None, progress, link=nullcontext(running.connection))
    if log is None:
        raise RunError(f"the run completed, but wrote nothing to {folder}")
    print_result(log, options)
    return 0


def node_configs(settings: Settings, nodes: int) -> Sequence[str]:
    """The node config of each SuperNode: tasks are dealt in turn, a demo task is the folder that it is in.

    Nodes to which the same task is dealt share it by their numbers.
    """
    sources = settings.task_sources
    dealt = [sources[number % len(sources)] for number in range(nodes)]
    configs = []
    for number, source in enumerate(dealt):
        own = str(resolve_task(source)) if source.startswith("demo:") else source
        task = f" task={json.dumps(own, ensure_ascii=False)}" if dealt.count(source) == 1 else ""
        configs.append(f"partition-id={number} num-partitions={nodes}{task}")
    return configs


def _say(line: str) -> None:
    print(f"fedkron federation: {line}", file=sys.stderr, flush=True)
