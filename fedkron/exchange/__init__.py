"""Where adapters rest: adapter and head files."""

from fedkron.exchange.files import (
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

__all__ = [
    "HEAD_FORMAT",
    "AdapterFile",
    "HeadFile",
    "file_format",
    "load_adapter",
    "load_head",
    "save_adapter",
    "save_head",
    "write_atomically",
]
