"""Where adapters rest: adapter and head files, and PEFT checkpoints.

What needs torch is not imported here: `fedkron.exchange.conversion`, `peft_import` and `peft_export`.
"""

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
    write_atomically,
)
from fedkron.exchange.peft_checkpoint import PeftCheckpoint, is_peft_checkpoint, read_peft

__all__ = [
    "ADAPTER_VERSION",
    "HEAD_FORMAT",
    "AdapterFile",
    "HeadFile",
    "PeftCheckpoint",
    "file_format",
    "is_peft_checkpoint",
    "load_adapter",
    "load_head",
    "read_peft",
    "save_adapter",
    "save_head",
    "write_atomically",
]
