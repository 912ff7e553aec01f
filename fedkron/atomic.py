"""Files and folders that are there as a whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part."""
    with _beside(path, content) as temporary:
        temporary.replace(path)


def create_atomically(path: Path, content: bytes) -> None:
    """The same for a file that must not be there yet.

    Raises `FileExistsError` when it is, whoever made it; another `OSError` where files cannot be linked.
    """
    with _beside(path, content) as temporary:
        path.hardlink_to(temporary)  # unlike renaming, this fails where there is one already


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """An empty folder to fill, which takes the place of `folder` at the end; on an error nothing changes."""
    workspace = Path(tempfile.mkdtemp(dir=folder.resolve().parent, prefix=f".{folder.name}."))
    try:
        fresh, former = workspace / "fresh", workspace / "former"
        fresh.mkdir()
        yield fresh
        if folder.exists():
            folder.rename(former)
        try:
            fresh.rename(folder)
        except BaseException:
            if former.exists():
                former.rename(folder)
            raise
    finally:
        shutil.rmtree(workspace, ignore_errors=True)


@contextmanager
def _beside(path: Path, content: bytes) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
