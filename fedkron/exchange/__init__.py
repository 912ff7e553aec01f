"""Where adapters rest: adapter and head files, and PEFT checkpoints.

What needs torch is not imported here: `fedkron.exchange.conversion`, `peft_import` and `peft_export`.
"""

from fedkron.atomic import write_atomically
from fedkron.exchange.files import (
    ADAPTER_VERSION,
    HEAD_FORMAT,
    AdapterFile,
    HeadFile,
    file_format,
    load_adapter,
    load_head,
    save_adapter,
    save_head,
)
from fedkron.exchange.peft_checkpoint import PeftCheckpoint, is_peft_checkpoint, read_peft
from fedkron.exchange.snapshot import SNAPSHOT_FORMAT, Tree, load_snapshot, save_snapshot
from fedkron.exchange.terms import (
    check_complete,
    folded_fingerprint,
    load_terms,
    on_folded_base,
    save_terms,
)

__all__ = [
    "ADAPTER_VERSION",
    "HEAD_FORMAT",
    "SNAPSHOT_FORMAT",
    "AdapterFile",
    "HeadFile",
    "PeftCheckpoint",
    "Tree",
    "check_complete",
    "file_format",
    "folded_fingerprint",
    "is_peft_checkpoint",
    "load_adapter",
    "load_head",
    "load_snapshot",
    "load_terms",
    "on_folded_base",
    "read_peft",
    "save_adapter",
    "save_head",
    "save_snapshot",
    "save_terms",
    "write_atomically",
]
