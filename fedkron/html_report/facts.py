"""What a run was: its head line by line, from what lies in its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fedkron.errors import FedKronError
from fedkron.exchange import load_adapter
from fedkron.html_report.content import Table, duration
from fedkron.ledger import by_node
from fedkron.rundir import (
    ADAPTER,
    AUDIT,
    CHECKPOINT,
    FLOWER_LOG,
    GROUPS,
    LEDGER,
    NODES,
    REPORT,
    ROUNDS,
    TENSORBOARD,
    TERMS,
)
from fedkron.runlog import RunLog
from fedkron.settings import NO_PRIVACY, ONE_GROUP, run_config

FILES = {
    ADAPTER: "the adapter after the last round: `fedkron export`, `fedkron convert`",
    TERMS: "what belongs to the base by now",
    GROUPS: "adapters of tasks, clusters or sizes",
    CHECKPOINT: "to go on from: `fedkron run --resume`",
    ROUNDS: "a line per round",
    LEDGER: "a line per message",
    AUDIT: "the signed log: `fedkron audit verify`",
    REPORT: "all figures as JSON",
    TENSORBOARD: "the same as scalars: `tensorboard --logdir`",
    FLOWER_LOG: "what Flower logged",
    NODES: "what nodes on this machine keep",
}


def head(log: RunLog) -> tuple[tuple[str, str], ...]:
    """What the run was, by name."""
    settings = log.settings
    adapter = settings.adapter
    size = f"rank {adapter.rank}, α {adapter.alpha:g}"
    last = log.rounds[-1].seconds if log.rounds else 0.0
    server = settings.server.strategy
    facts = {
        "base": settings.base,
        "tasks": ", ".join(settings.task_sources),
        "nodes": str(len(by_node(log.transfers))),
        "rounds": f"{len(log.rounds)} of {settings.num_server_rounds}",
        "adapter": f"{adapter.kind}, {size}{', sizes of their own' if adapter.sizes == 'own' else ''}",
        **_adapter_facts(log.folder),
        "codec": f"{settings.codec.upload} up, {settings.codec.broadcast} down",
        "aggregation": f"{settings.aggregation}, server {server}, robust rule {settings.robust.rule}",
        "groups": "" if settings.groups.by == ONE_GROUP else f"by {settings.groups.by}",
        "privacy": "" if settings.privacy.kind == NO_PRIVACY else settings.privacy.kind,
        "secure aggregation": "yes" if settings.secure.aggregation else "",
        "seed": str(settings.seed),
        "duration": duration(last),
        **_opened(log.folder),
    }
    return tuple((key, value) for key, value in facts.items() if value)


def settings_table(log: RunLog) -> Table:
    """All settings."""
    rows = tuple((key, _shown(value)) for key, value in run_config(log.settings).items())
    return Table("All settings", ("setting", "value"), rows, words=True)


def files_table(log: RunLog) -> Table:
    """What lies in the run folder."""
    there = tuple((name, what) for name, what in FILES.items() if (log.folder / name).exists())
    return Table(f"Files in {log.folder.resolve()}", ("file", "what it is"), there)


def _shown(value: object) -> str:
    return json.dumps(value) if isinstance(value, bool) else str(value)


def _adapter_facts(folder: Path) -> dict[str, str]:
    try:
        layout = load_adapter(folder / ADAPTER).layout
    except (OSError, FedKronError):
        return {}  # no round has been finished
    parameters = sum(tensor.size for tensor in layout.tensors)
    return {"parameters": f"{parameters:,}", "contract": layout.contract}


def _opened(folder: Path) -> dict[str, str]:
    """When the run began, and with which version: what its log says; `fedkron audit verify` checks that."""
    try:
        with (folder / AUDIT).open(encoding="utf-8") as lines:
            line: dict[str, Any] = json.loads(lines.readline())
        return {"begun": str(line["time"]), "fedkron": str(line["fields"]["fedkron"])}
    except (OSError, ValueError, LookupError, TypeError):
        return {}
