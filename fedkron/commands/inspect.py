"""`fedkron inspect`: what is in one of our files."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedkron.compression import inspect_header
from fedkron.edge.device_adapter import DEVICE_FORMAT, load_device_adapter, read_device_adapter
from fedkron.edge.manifest import MANIFEST, read_manifest, verify_files
from fedkron.errors import FedKronError
from fedkron.exchange import (
    ADAPTER_VERSION,
    HEAD_FORMAT,
    SNAPSHOT_FORMAT,
    file_format,
    load_adapter,
    load_head,
    load_snapshot,
)
from fedkron.ledger import read_ledger, totals
from fedkron.report import figures
from fedkron.rundir import SETTINGS
from fedkron.runlog import read_run
from fedkron.socketlog import is_socket_log, read_socket_log, socket_totals


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "inspect",
        help="what is in a file of ours",
        description="Check and describe a payload, an adapter or head file, a ledger, a socket log, an "
        "audit log, a checkpoint, a bundle or a run folder.",
    )
    parser.add_argument("path", type=Path, help="file or folder")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(command=inspect)


def inspect(options: argparse.Namespace) -> int:
    """Print the kind of a file and what its header says; fails when it is damaged."""
    facts = describe(options.path)
    if options.json:
        print(json.dumps(facts, indent=1))
        return 0
    for name, value in facts.items():
        print(f"{name:<14}{value}")
    return 0


def describe(path: Path) -> dict[str, Any]:
    """Facts about one of our files or folders; raises a `FedKronError` for a damaged or foreign one."""
    if not path.exists():
        raise FedKronError(f"{path} does not exist")
    if path.is_dir():
        return _folder(path)
    with path.open("rb") as file:
        start = file.read(4)
    if start == b"FKRN":
        return {"format": "payload", **asdict(inspect_header(path.read_bytes()))}
    return _log(path) if start[:1] == b"{" else _tensors(path)


def _log(path: Path) -> dict[str, Any]:
    if _is_audit_log(path):
        return _audit_log(path)
    if is_socket_log(path):
        return {"format": "socket log", **asdict(socket_totals(read_socket_log(path)))}
    cost = totals(read_ledger(path))
    return {"format": "ledger", **asdict(cost), "factor": round(cost.factor, 2)}


def _is_audit_log(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.readline(1 << 16)
    try:
        content = json.loads(start)
    except (ValueError, RecursionError):
        return False
    return isinstance(content, dict) and {"previous", "signature"} <= content.keys()


def _audit_log(path: Path) -> dict[str, Any]:
    # `cryptography` is part of an extra.
    from fedkron.audit import read_log

    entries = read_log(path)
    return {
        "format": "audit log",
        "head": str(entries[-1].head),
        "public key": entries[0].fields["public_key"],
        "from": entries[0].time,
        "to": entries[-1].time,
        "events": dict(Counter(entry.event for entry in entries)),
    }


def _tensors(path: Path) -> dict[str, Any]:
    describers = {HEAD_FORMAT: _head, DEVICE_FORMAT: _device_adapter, SNAPSHOT_FORMAT: _snapshot}
    return describers.get(file_format(path), _adapter)(path)


def _folder(path: Path) -> dict[str, Any]:
    if (path / MANIFEST).is_file():
        manifest = read_manifest(path)
        verify_files(path, manifest)
        adapters = {
            entry.name: load_device_adapter(path / entry.file, manifest.slot, manifest.hidden_size)
            for entry in manifest.adapters
        }
        return {
            "format": "bundle",
            "contract": manifest.layout.contract,
            "base": manifest.base_name,
            "base form": manifest.base_form,
            "slot": manifest.slot.encoding,
            "slot hash": manifest.slot.hash,
            "input": manifest.input.to_json(),
            "adapters": {
                name: {
                    "bytes": adapter.nbytes,
                    "tasks": {head.name: list(head.labels) or head.kind for head in adapter.heads},
                }
                for name, adapter in adapters.items()
            },
            "merged": list(manifest.merged),
            "files": sorted(manifest.files),
        }
    if (path / SETTINGS).is_file():
        return {"format": "run", **figures(read_run(path))}
    raise FedKronError(f"{path} is neither a bundle (no {MANIFEST}) nor a run folder (no {SETTINGS})")


def _adapter(path: Path) -> dict[str, Any]:
    adapter = load_adapter(path)
    layout = adapter.layout
    kinds = Counter(module.kind for module in layout.modules)
    return {
        "format": "adapter",
        "contract": layout.contract,
        "base": adapter.base_name,
        "fingerprint": layout.base,
        "layers": ", ".join(f"{count} × {kind}" for kind, count in kinds.items()),
        "scale": sorted({module.scale for module in layout.modules}),
        "parameters": layout.size,
        "shared head": layout.has_head,
        "version": ADAPTER_VERSION,
        "spec": ", ".join(f"{key} {value}" for key, value in adapter.spec.items()) or "not known",
        "lineage": list(adapter.lineage),
        **adapter.info,
    }


def _snapshot(path: Path) -> dict[str, Any]:
    """A checkpoint of a server, or a node's kept state."""
    tree = load_snapshot(path)
    if (strategy := tree.get("strategy")) is None:
        return {"format": "node state", "records": list(tree)}
    return {
        "format": "checkpoint",
        "round": strategy["round"],
        "run": tree["run"],
        "contract": tree["contract"],
        "nodes": tree["nodes"],
        "known": [f"{task}-{partition}" for task, partition, _ in strategy["origins"]],
    }


def _head(path: Path) -> dict[str, Any]:
    head = load_head(path)
    return {
        "format": "head",
        "task": head.task,
        "kind": head.task_kind,
        "labels": list(head.labels),
        "hidden size": head.weight.shape[1],
        "contract": head.contract,
    }


def _device_adapter(path: Path) -> dict[str, Any]:
    adapter = read_device_adapter(path)
    return {
        "format": "device adapter",
        "adapter": adapter.name,
        "contract": adapter.contract,
        "slot hash": adapter.slot_hash,
        "tasks": {head.name: list(head.labels) or head.kind for head in adapter.heads},
        "arrays": {name: f"{array.dtype} {array.size}" for name, array in adapter.arrays.items()},
        "bytes": adapter.nbytes,
    }
