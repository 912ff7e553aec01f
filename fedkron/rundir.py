"""Where a run writes, and what lies there: one folder per run, the same rule for server and clients.

<output-dir>/<run-name or run-ID>/
    settings.json         the run config
    adapter.safetensors   the global adapter after the last finished round
    terms.safetensors     what belongs to the base by now, where the aggregation has made such terms
    groups/<name>/adapter.safetensors   the adapter of each task, cluster or size, where not all share one
    checkpoint.safetensors   all that is needed to go on after the last finished round
    rounds.jsonl          accuracy per task, what nodes did, failures and projection error, a line per round
    tensorboard/          the same figures as TensorBoard scalars, written while the run goes on
    ledger.jsonl          bytes, a line per message
    audit.jsonl           who sent what and what came of it, a signed line per event that names the one before
    audit-head.json       how many lines audit.jsonl has, and the hash of the last, signed
    outcome.json          how it ended; its absence means that it did not end
    report.json           all figures of the finished run, from `fedkron run`
    report.html           the same as a page, from `fedkron run` and `fedkron report`
    flower.log            what Flower logged, from `fedkron run`
    logs/*.log            what the processes of `fedkron federation` wrote
    nodes/<task>-<partition>/head.safetensors   written by the clients, on their own machines
    nodes/<task>-<partition>/state/<run id>/round-<n>.safetensors   the same: head, residuals, shared state
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedkron.settings import Settings

START_DIRECTORY = "FEDKRON_START_DIRECTORY"
"""Environment variable with the folder that relative output folders refer to; default: the current one."""

SETTINGS = "settings.json"
ADAPTER = "adapter.safetensors"
TERMS = "terms.safetensors"
GROUPS = "groups"
CHECKPOINT = "checkpoint.safetensors"
ROUNDS = "rounds.jsonl"
LEDGER = "ledger.jsonl"
AUDIT = "audit.jsonl"
OUTCOME = "outcome.json"
REPORT = "report.json"
REPORT_PAGE = "report.html"
TENSORBOARD = "tensorboard"
FLOWER_LOG = "flower.log"
LOGS = "logs"
NODES = "nodes"
HEAD = "head.safetensors"

LONGEST = 64
"""Characters of a name that a folder is called by."""


def run_directory(settings: Settings, run_id: int) -> Path:
    """Absolute folder of a run, not created."""
    start = Path(os.environ.get(START_DIRECTORY) or Path.cwd())
    return start / Path(settings.output_dir).expanduser() / (settings.run_name or f"run-{run_id}")


def folder_name(name: str) -> str:
    """A name as that of one folder, which leads nowhere else, and is no other name's.

    One that is not plain gets the hash of it, after a character that plain names do not have.
    """
    plain = re.sub(r"[^\w.-]|^\.+|\.$", "_", name)[:LONGEST]
    if name and plain == name:
        return name
    return f"{plain}~{hashlib.sha256(name.encode('utf-8', 'backslashreplace')).hexdigest()[:16]}"


def group_directory(folder: Path, group: str) -> Path:
    """Folder of one group's adapter in a run folder, not created.

    Its name may come from a node (a task's name).
    """
    return folder / GROUPS / folder_name(group)


def node_directory(settings: Settings, run_id: int, task: str, partition: int) -> Path:
    """Absolute folder of one node's own files within its copy of the run folder, not created."""
    return run_directory(settings, run_id) / NODES / folder_name(f"{task}-{partition}")
