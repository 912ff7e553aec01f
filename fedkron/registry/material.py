"""What there is to publish: the files, and what a run folder or an adapter file says about itself."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fedkron.edge.device_adapter import device_adapter, save_device_adapter
from fedkron.edge.heads import matching_heads, shared_head
from fedkron.edge.manifest import read_manifest
from fedkron.errors import ExchangeError
from fedkron.exchange import AdapterFile, HeadFile, load_adapter, load_head, save_adapter
from fedkron.exchange.terms import TERMS_DIGEST
from fedkron.ledger import totals
from fedkron.registry.publication import (
    AdapterFacts,
    Lineage,
    Metric,
    Parent,
    Privacy,
    PublishedFile,
    Traffic,
    Training,
    device_path,
)
from fedkron.rundir import ADAPTER, TERMS, group_directory
from fedkron.runlog import RunLog, TaskFigures, read_run


@dataclass(frozen=True)
class Content:
    """One file with its bytes."""

    file: PublishedFile
    data: bytes


@dataclass(frozen=True)
class Material:
    """An adapter with its files, and the facts of a publication that are not its publisher's to choose."""

    adapter: AdapterFile
    contents: tuple[Content, ...]
    tasks: tuple[str, ...]
    metrics: tuple[Metric, ...]
    training: Training | None
    traffic: Traffic | None
    privacy: Privacy | None
    lineage: Lineage

    @property
    def facts(self) -> AdapterFacts:
        """What can be counted, and the settings that the adapter was made with."""
        layout = self.adapter.layout
        names = sorted({module.kind for module in layout.modules})
        kinds = {name: sum(module.kind == name for module in layout.modules) for name in names}
        return AdapterFacts(kinds, layout.size, dict(self.adapter.spec))


@dataclass(frozen=True)
class Choice:
    """What a publisher adds to, or leaves out of, a run folder or an adapter file.

    `heads` are the head files to publish: none by default, because a head is its node's own. `bundles` are
    those for whose slots the adapter is published in the form of a device, too.
    """

    group: str | None = None
    heads: Sequence[Path] = ()
    tasks: Sequence[str] = ()
    base_name: str | None = None
    parents: Sequence[Parent] = ()
    bundles: Sequence[Path] = ()


def content(path: str, role: str, data: bytes) -> Content:
    """A file with its size and hash."""
    return Content(PublishedFile(path, role, len(data), hashlib.sha256(data).hexdigest()), data)


def material(source: Path, choice: Choice) -> Material:
    """What a run folder, or an adapter file, has to publish.

    Raises `ExchangeError` for a run that has not ended well, an adapter without the terms that it needs, and
    a base that is named by a path of this machine; `ContractError` for heads of another adapter; and what
    reading the files raises.
    """
    log = _ended_run(source) if source.is_dir() else None
    file = source if log is None else _adapter_of(log, choice.group)
    adapter = _with_public_base(load_adapter(file), choice.base_name)
    heads = [load_head(path) for path in choice.heads]
    _check_heads(adapter, heads)
    data = file.read_bytes() if adapter.base_name == load_adapter(file).base_name else _saved(adapter)
    contents = [content(ADAPTER, "adapter", data)]
    contents += _terms(file, adapter, log)
    contents += [
        content(f"head-{number}.safetensors", "head", path.read_bytes())
        for number, path in enumerate(choice.heads)
    ]
    figures = {} if log is None else _figures(log, choice.group)
    tasks = tuple(choice.tasks) or tuple(sorted(figures.keys() | {head.task for head in heads}))
    ready = heads or _shared_heads(adapter, log, tasks)
    contents += [_device_form(bundle, adapter, ready) for bundle in choice.bundles]
    return Material(
        adapter,
        tuple(contents),
        tasks,
        tuple(
            metric for task in sorted(figures.keys() & set(tasks)) for metric in _metrics(task, figures[task])
        ),
        None if log is None else _training(log),
        None if log is None else _traffic(log),
        None if log is None else _privacy(log),
        Lineage(hashlib.sha256(file.read_bytes()).hexdigest(), adapter.lineage, tuple(choice.parents)),
    )


def _ended_run(folder: Path) -> RunLog:
    log = read_run(folder)
    if log.outcome != "completed":
        raise ExchangeError(
            f"run {folder} has not ended well ({log.error or log.outcome or 'it is still going on'}): give "
            f"its {ADAPTER} if you mean the adapter of its last round"
        )
    return log


def _adapter_of(log: RunLog, group: str | None) -> Path:
    groups = log.groups
    if group is None:
        # What nodes have measured is what these can do, not what the adapter for all can.
        if groups:
            raise ExchangeError(
                f"{log.folder} has an adapter for each of {', '.join(groups)}: say which with --group, or "
                f"give its {ADAPTER}, the one for all, which no node has measured"
            )
        return log.folder / ADAPTER
    if group not in groups:
        raise ExchangeError(f"{log.folder} has no group {group!r}: it has {', '.join(groups) or 'none'}")
    return group_directory(log.folder, group) / ADAPTER


def _with_public_base(adapter: AdapterFile, name: str | None) -> AdapterFile:
    """What others read must not tell them how folders are called here, and would not help them."""
    given = adapter.base_name
    if name is not None:
        return replace(adapter, base_name=name)
    if Path(given).is_absolute() or given.startswith((".", "~")) or "\\" in given or Path(given).is_dir():
        raise ExchangeError(
            f"the adapter names its base by a path of this machine ({given}): say what others know it by, "
            "with --base ID; its fingerprint stays the same"
        )
    return adapter


def _saved(adapter: AdapterFile) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(Path(folder) / ADAPTER, adapter)
        return (Path(folder) / ADAPTER).read_bytes()


def _check_heads(adapter: AdapterFile, heads: Sequence[HeadFile]) -> None:
    widths = {head.weight.shape[1] for head in heads}
    if len(widths) > 1:
        raise ExchangeError(f"the heads are for bases of different widths ({sorted(widths)})")
    if heads:
        matching_heads(adapter, heads, widths.pop())


def _terms(file: Path, adapter: AdapterFile, log: RunLog | None) -> list[Content]:
    if (needed := adapter.info.get(TERMS_DIGEST)) is None:
        return []
    path = (file.parent if log is None else log.folder) / TERMS
    if not path.is_file() or hashlib.sha256(data := path.read_bytes()).hexdigest() != needed:
        raise ExchangeError(
            f"the adapter needs terms that were folded into its base, and {path} does not hold them: publish "
            "its run folder"
        )
    return [content(TERMS, "terms", data)]


def _device_form(bundle: Path, adapter: AdapterFile, heads: Sequence[HeadFile]) -> Content:
    manifest = read_manifest(bundle)
    packed = device_adapter("published", adapter, heads, manifest.slot, manifest.hidden_size)
    with tempfile.TemporaryDirectory() as folder:
        save_device_adapter(Path(folder) / ADAPTER, packed)
        data = (Path(folder) / ADAPTER).read_bytes()
    return content(device_path(manifest.slot.hash), "device", data)


def _shared_heads(adapter: AdapterFile, log: RunLog | None, tasks: Sequence[str]) -> list[HeadFile]:
    """A head that is part of the adapter, for each task: it is published in any case."""
    if log is None or not adapter.layout.has_head:
        return []
    return [shared_head(adapter, task, log.settings.shared_labels) for task in tasks]


def _figures(log: RunLog, group: str | None) -> dict[str, TaskFigures]:
    """The figures of the last round, of the tasks that this adapter is for."""
    found = log.rounds[-1].tasks if log.rounds else {}
    if group is None:
        return dict(found)
    own = {node.rpartition("-")[0] for node in log.groups[group]}
    return {task: figures for task, figures in found.items() if task in own}


def _metrics(task: str, figures: TaskFigures) -> list[Metric]:
    return [
        Metric(task, "accuracy", float(figures.accuracy)),
        Metric(task, "head-only-accuracy", float(figures.head_only_accuracy)),
        Metric(task, "majority", float(figures.majority)),
    ]


def _training(log: RunLog) -> Training:
    settings, last = log.settings, log.rounds[-1]
    return Training(
        run=log.folder.resolve().name,
        rounds=last.round,
        nodes=sum(figures.clients for figures in last.tasks.values()),
        aggregation=settings.aggregation,
        upload_codec=settings.codec.upload,
        broadcast_codec=settings.codec.broadcast,
        secure_aggregation=settings.secure.aggregation,
    )


def _traffic(log: RunLog) -> Traffic:
    found = totals(log.transfers)
    return Traffic(found.message_up, found.message_down, found.baseline)


def _privacy(log: RunLog) -> Privacy | None:
    if (spent := log.rounds[-1].privacy) is None:
        return None
    epsilon = None if spent.epsilon is None else float(spent.epsilon)
    return Privacy(log.settings.privacy.kind, epsilon, float(spent.delta), spent.rounds)
