"""What `fedkron export` exports: the adapter of a run or a file, with its heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedkron.errors import BundleError
from fedkron.exchange import AdapterFile, HeadFile, load_adapter, load_head, load_terms
from fedkron.layout import State
from fedkron.rundir import ADAPTER, HEAD, NODES, TERMS, folder_name, group_directory
from fedkron.runlog import read_run
from fedkron.settings import TrainSettings


@dataclass(frozen=True)
class Source:
    """What is exported: an adapter, from which file, with heads, training settings and the base's terms."""

    file: Path
    adapter: AdapterFile
    heads: Sequence[HeadFile]
    trained: TrainSettings
    terms: Sequence[State]


def read_source(source: Path, group: str | None, head_files: Sequence[Path]) -> Source:
    """What is exported: from a run folder, or an adapter file with its head files.

    Raises `BundleError` when there is no head, or no adapter of this group, and what reading the files
    raises.
    """
    is_run = source.is_dir()
    file = _adapter_of_run(source, group) if is_run else source
    adapter = load_adapter(file)
    return Source(
        file,
        adapter,
        [load_head(path) for path in head_files] or _heads_of_run(source, adapter, group),
        read_run(source).settings.train if is_run else TrainSettings(),
        load_terms(source / TERMS) if is_run and (source / TERMS).exists() else [],
    )


def _adapter_of_run(run: Path, group: str | None) -> Path:
    """Where a run's adapter is: that for all, or that of a group."""
    if group is None:
        return run / ADAPTER
    if group not in (groups := read_run(run).groups):
        raise BundleError(
            f"{run} has no group {group!r} with an adapter: it has {', '.join(groups) or 'none'}"
        )
    return group_directory(run, group) / ADAPTER


def _heads_of_run(source: Path, adapter: AdapterFile, group: str | None) -> Sequence[HeadFile]:
    """The head of each task in the group: the shared one in the adapter, or that of the task's first node."""
    from fedkron.edge.heads import shared_head

    if adapter.layout.has_head and source.is_dir():
        log = read_run(source)
        tasks = sorted(log.rounds[-1].tasks) if log.rounds else []
        return [shared_head(adapter, task, log.settings.shared_labels) for task in tasks]
    files = sorted((source / NODES).glob(f"*/{HEAD}"))
    if group is not None:
        folders = set(map(folder_name, read_run(source).groups[group]))
        files = [file for file in files if file.parent.name in folders]
    first: dict[str, HeadFile] = {}
    for head in map(load_head, files):
        first.setdefault(head.task, head)
    if not first:
        raise BundleError(
            f"no head found in {source / NODES}: heads stay with the nodes that trained them; "
            "copy one here, or give it with --head FILE"
        )
    return list(first.values())
