"""A folder of adapters that a service follows: whoever can write there decides what it answers."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING

from fedkron.errors import BundleError, FedKronError, TaskError

if TYPE_CHECKING:
    from fedkron.edge.runtime import Bundle

SUFFIX = ".safetensors"
SECONDS = 0.5
"""Between two looks at the folder."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Version:
    """What changes when a file is written or replaced."""

    modified: int
    size: int
    inode: int


class AdapterFolder:
    """Loads each `NAME.safetensors` of a folder into a bundle as adapter `NAME`, again when it changes.

    A file that cannot be used is logged once, and the adapter that was loaded before stays. A file that
    disappears takes its adapter along.
    """

    def __init__(self, folder: Path, bundle: Bundle) -> None:
        """Raises `BundleError` when there is no such folder."""
        if not folder.is_dir():
            raise BundleError(f"{folder} is not a folder: make it, or leave --adapters out")
        self._folder = folder
        self._bundle = bundle
        self._seen: dict[str, _Version] = {}
        self._loaded: set[str] = set()

    def refresh(self) -> None:
        """Take up what has changed since the last time."""
        try:
            found = self._versions()
        except OSError as error:
            # Not an empty folder: it may be on a disk that comes back.
            _log.warning("%s cannot be read (%s): all adapters stay", self._folder, error)
            return
        for name, version in found.items():
            if self._seen.get(name) != version:
                self._load(name)
        for name in self._loaded - found.keys():
            self._unload(name)
        self._seen = found

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Refresh now, and until the end twice a second in a thread."""
        self.refresh()
        ended = Event()

        def follow() -> None:
            while not ended.wait(SECONDS):
                self.refresh()

        thread = Thread(target=follow, name="adapter-folder", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _versions(self) -> dict[str, _Version]:
        versions = {}
        with os.scandir(self._folder) as entries:
            for entry in entries:
                # Files that are still being written have a name that begins with a dot, as is customary.
                if entry.name.endswith(SUFFIX) and not entry.name.startswith("."):
                    try:
                        stat = Path(entry).stat()
                    except FileNotFoundError:
                        continue
                    versions[entry.name.removesuffix(SUFFIX)] = _Version(
                        stat.st_mtime_ns, stat.st_size, stat.st_ino
                    )
        return dict(sorted(versions.items()))

    def _load(self, name: str) -> None:
        try:
            self._bundle.load(self._folder / f"{name}{SUFFIX}", name)
        except FedKronError as error:
            _log.warning("adapter %r stays as it is: %s", name, error)
        else:
            self._loaded.add(name)
            _log.info("adapter %r is loaded", name)

    def _unload(self, name: str) -> None:
        self._loaded.discard(name)
        try:
            self._bundle.unload(name)
        except TaskError:  # dropped by someone else before
            return
        _log.info("adapter %r is gone with its file", name)
