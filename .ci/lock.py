"""Write the lock files anew: versions from constraints.txt, with the SHA-256 of all files they may come as.

    .venv/bin/python .ci/lock.py [FOLDER]

requirements.lock            all of constraints.txt but torch
requirements-torch.lock      torch as on PyPI, and what it needs besides: on Linux it is built for CUDA
requirements-torch-cpu.lock  its build for CPUs, which PyPI does not have: a wheel in FOLDER; without FOLDER
                             this file stays as it is
requirements-audit.lock      pip-audit, for `make audit`

uv asks the index which files each version has, so that the hashes of all platforms are listed.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PINS = ROOT / "constraints.txt"
PIP_AUDIT = "pip-audit==2.10.1"
HEADER = "# Written by `make lock` from constraints.txt: do not edit. See docs/supply-chain.md.\n"


def compiled(requirements: str, *options: str) -> str:
    """These requirements with a version and the hashes of its files, for Python 3.11."""
    command = [sys.executable, "-m", "uv", "--no-config", "pip", "compile", "-", "--generate-hashes"]
    style = ["--quiet", "--no-header", "--no-annotate", "--python-version", "3.11"]
    done = subprocess.run(
        [*command, *style, *options], input=requirements, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"uv could not resolve the requirements: {done.stderr.strip()}")
    return done.stdout


def of_wheel(folder: Path, pin: str) -> str:
    """The one wheel of the pinned version in a folder, as a requirement with its hash."""
    name, version = pin.split("==")
    wheels = sorted(folder.glob(f"{name}-{version}+*.whl"))
    if not wheels:
        raise SystemExit(f"there is no wheel of {name} {version} with a local version (+cpu) in {folder}")
    hashes = [f"--hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}" for wheel in wheels]
    return " \\\n    ".join([f"{name}=={wheels[0].name.split('-')[1]}", *hashes]) + "\n"


def write(name: str, lock: str) -> None:
    """Write one of the files."""
    (ROOT / name).write_text(HEADER + lock, encoding="utf-8")


def main() -> None:
    """Write the files."""
    pins = [line for line in PINS.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    torch = next(pin for pin in pins if pin.startswith("torch=="))
    others = [pin for pin in pins if pin != torch]
    write("requirements.lock", compiled("\n".join(others), "--no-deps"))
    elsewhere = [f"--no-emit-package={pin.partition('==')[0]}" for pin in others]
    write("requirements-torch.lock", compiled(torch, "--universal", f"--constraint={PINS}", *elsewhere))
    write("requirements-audit.lock", compiled(PIP_AUDIT))
    for folder in sys.argv[1:]:
        write("requirements-torch-cpu.lock", of_wheel(Path(folder), torch))


if __name__ == "__main__":
    main()
