"""Steps of a session that a node takes once, whatever comes at the same time.

A SuperNode may answer several messages at once, each in a process with a copy of `context.state` of its own:
what one of them remembers, the others do not see. A server that asks twice at the same moment, with different
lists, could get both shares of a node, or two uploads under one mask. So each step is claimed by creating a
file, which only one process can.
"""

from __future__ import annotations

import os
import stat
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from fedkron.errors import SecurityError
from fedkron.secure.keys import digest

FOLDER = "fedkron-secure"
KEPT_SECONDS = 7 * 24 * 3600.0
"""How long a claim is kept. By then a session is over, and its secrets are nowhere any more."""


def claim(secret: bytes, step: str) -> None:
    """Take a step, once for the same secret; raises `SecurityError` when it was taken before.

    Raises `SecurityError`, too, where claims cannot be trusted, because others may write to their folder.
    """
    folder = _folder()
    _clear(folder)
    name = digest(b"claim", step.encode(), secret).hex()
    try:
        os.close(os.open(folder / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        raise SecurityError(f"asked to {step} twice in one round: this node does so once") from None


def _folder() -> Path:
    user = os.getuid() if hasattr(os, "getuid") else 0
    folder = Path(tempfile.gettempdir()) / f"{FOLDER}-{user}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    ours = stat.S_ISDIR(found.st_mode) and (not hasattr(os, "getuid") or found.st_uid == user)
    if not ours or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise SecurityError(f"{folder} is not this user's own folder: remove it")
    return folder


def _clear(folder: Path) -> None:
    oldest = time.time() - KEPT_SECONDS
    for file in folder.iterdir():
        with suppress(FileNotFoundError):
            if file.stat().st_mtime < oldest:
                file.unlink()
