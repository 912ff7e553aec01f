"""Where adapters rest: adapter and head files."""

from fedkron.exchange.files import (
    AdapterFile,
    HeadFile,
    load_adapter,
    load_head,
    save_adapter,
    save_head,
    write_atomically,
)

__all__ = [
    "AdapterFile",
    "HeadFile",
    "load_adapter",
    "load_head",
    "save_adapter",
    "save_head",
    "write_atomically",
]
