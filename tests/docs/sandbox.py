"""A copy of the repository in which the commands of one page are run, in their order.

What a newcomer types is what is run. `fedkron …` is called in this process, as the console script calls it
(a process each would import torch fifty times); all else goes to bash. Exceptions are few, and here:

- `make TARGET` is asked what it would do (`make -n`), `pip install 'fedkron[EXTRA]'` whether there is such an
  extra, and programs of `simulations` and `benchmarks`, which take minutes, whether they know the options.
  What these really do is tested elsewhere.
- What runs until it is interrupted is started, awaited, and interrupted at the end of the page.
- `127.0.0.1:PORT` and `--port PORT` are ports that are free, `superlink:8000` one at which something listens.
- `s3://bucket` is on a server in this process. Adapters here have a base in a folder, so `fedkron publish` is
  told what others know it by, with `--base`.
- `fedkron run` sends the same messages through the same programs inside of this process, except on the pages
  `REAL_RUNS`.
"""

import os
import re
import runpy
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path

import pytest
from blocks import ROOT
from federation_cases import federate, grid_of
from s3_cases import make_bucket, s3_server
from shelf import ON_PAGE, STAND_INS, Shelf

from fedkron.cli import main
from fedkron.commands.progress import Progress
from fedkron.commands.run import free_run_folder
from fedkron.flower.superlink import Connection, free_ports, private_superlink
from fedkron.runlog import RunLog, read_run
from fedkron.settings import Settings, run_config

REAL_RUNS = ("docs/tutorials/own-task.md",)
SERVICES = {
    "fedkron serve": "Serving ",
    "fedkron meter": "listening on ",
    "python -m export.web": "Open ",
}
"""Commands that run until they are interrupted, and what they say when they are ready."""

BUCKET = "bucket"
SUPERLINK = "superlink:8000"
"""An address in the documentation at which something listens."""

LEFT_OUT = (".git", ".venv", "node_modules", "runs", "bundles", "build", "dist", "__pycache__", ".*_cache")
PATIENCE = 120
_OUTPUT = re.compile(r"(?:-o|--output|--json|--plot|>)[ =]*$")
_PROGRAM = re.compile(r"python (?:-m )?(?P<name>(?:simulations|benchmarks)[./][\w./]+)")
_ADDRESS = re.compile(r"(127\.0\.0\.1:|--port )(\d{2,5})\b")
_SHELL = re.compile(r"[|&;<>$`]")


@dataclass
class Sandbox:
    """The folder of a page, and what its commands have left there so far."""

    page: str
    folder: Path
    shelf: Shelf
    stack: ExitStack
    ports: dict[str, int] = field(default_factory=dict)
    setup: list[str] = field(default_factory=list)
    flower: Connection | None = None
    bucket: str = ""

    def run(self, command: str) -> None:
        """Run one command; fails unless its exit code is 0."""
        self.provide(command)
        command = self.with_addresses(command)
        words = shlex.split(command)
        service = next((name for name in SERVICES if command.startswith(name)), None)
        program = _PROGRAM.search(command)
        if words[0] == "make":
            self.bash(f"make --dry-run {shlex.join(words[1:])}")
        elif words[:2] == ["pip", "install"]:
            check_extras(words[2:])
        elif program and "--quick" not in words:
            check_options(program["name"], words)
        elif service:
            self.stack.enter_context(self.serving(words, SERVICES[service]))
        elif words[0] == "fedkron" and not _SHELL.search(command):
            if words[1] == "publish" and "--base" not in words:
                words += ["--base", "some/base"]
            with redirect_stdout(StringIO()) as output, redirect_stderr(output):
                code = exit_code(words[1:])
            assert code == 0, f"{self.page}: {command}\n{output.getvalue()}"
        else:
            self.bash(command)

    def bash(self, command: str) -> None:
        """Run a line in a shell of its own, after the lines that set something up for those that follow."""
        done = subprocess.run(
            ["bash", "-c", "\n".join(["set -euo pipefail", *self.setup, command])],
            cwd=self.folder,
            env=self.environment(flower=command.startswith("flwr ")),
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        assert done.returncode == 0, f"{self.page}: {command}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        if re.match(r"(\. |source |export |[A-Z_]+=\S+$|[A-Z_]+=\$\()", command):
            self.setup.append(command)

    def environment(self, *, flower: bool) -> dict[str, str]:
        """Our Python first, and for Flower's own command a SuperLink that ends with the page."""
        if flower and self.flower is None:
            self.flower = self.stack.enter_context(private_superlink())
        scripts = self.folder / ".venv" / "bin"
        return {
            **os.environ,
            **(self.flower.environment if self.flower else {}),
            "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "no_proxy": "127.0.0.1,localhost",
        }

    @contextmanager
    def serving(self, words: Sequence[str], ready: str) -> Iterator[None]:
        """A program that runs until SIGINT, once it says that it is ready; it has to end with exit code 0."""
        arguments = ["-m", "fedkron.cli", *words[1:]] if words[0] == "fedkron" else [*words[1:]]
        if words[1] in ("serve", "-m") and "--port" not in words:
            arguments += ["--port", str(self.port("8000"))]
        log = self.folder / f"{words[1]}.log"
        with (
            log.open("w") as output,
            subprocess.Popen(
                [sys.executable, *arguments],
                cwd=self.folder,
                env=self.environment(flower=False),
                stdout=output,
                stderr=output,
            ) as process,
        ):
            try:
                deadline = time.monotonic() + PATIENCE
                while ready not in log.read_text():
                    assert process.poll() is None, log.read_text()
                    assert time.monotonic() < deadline, log.read_text()
                    time.sleep(0.05)
                yield
                process.send_signal(signal.SIGINT)
                assert process.wait(PATIENCE) == 0, log.read_text()
            finally:
                process.kill()

    def port(self, named: str) -> int:
        """The free port that stands for one in the documentation."""
        if named not in self.ports:
            (self.ports[named],) = free_ports(1)
        return self.ports[named]

    def with_addresses(self, text: str) -> str:
        text = _ADDRESS.sub(lambda match: f"{match[1]}{self.port(match[2])}", text)
        if SUPERLINK in text:
            listener = self.stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            text = text.replace(SUPERLINK, f"127.0.0.1:{listener.getsockname()[1]}")
        return text

    def provide(self, text: str) -> None:
        """Put there what a text names and nothing before it has made, unless the text makes it itself."""
        if f"s3://{BUCKET}" in text and not self.bucket:
            server = self.stack.enter_context(s3_server())
            self.bucket = make_bucket(server, BUCKET, self.stack.enter_context(pytest.MonkeyPatch.context()))
        for name, make in STAND_INS.items():
            if (self.folder / name).exists():
                continue
            for match in re.finditer(rf"(?<![\w/.-]){re.escape(name)}(?![\w-])", text):
                if not _OUTPUT.search(text[: match.start()]):
                    (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                    ON_PAGE.get((self.page, name), make)(self.shelf, self.folder / name)
                    break


@contextmanager
def sandbox(page: str, folder: Path, shelf: Shelf) -> Iterator[Sandbox]:
    """A copy of the repository whose settings are those of a tiny run, as current folder."""
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*LEFT_OUT))
    (folder / ".venv").mkdir()
    (folder / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
    modules = ROOT / "export" / "web" / "node_modules"
    (folder / "export" / "web" / "node_modules").symlink_to(modules)
    make_defaults_small(folder / "pyproject.toml", shelf)
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.chdir(folder)
        if page not in REAL_RUNS:
            patch.setattr("fedkron.commands.run.federate", federate_in_process)
        yield Sandbox(page, folder, shelf, stack)


def make_defaults_small(pyproject: Path, shelf: Shelf) -> None:
    """Runs that name no base or tasks take tiny ones."""
    config = shelf.config(pyproject.parent / "runs")
    small = {"base": config["base"], "tasks": config["tasks"], "num-server-rounds": 2}
    text = pyproject.read_text(encoding="utf-8")
    for key, value in small.items():
        written = f'"{value}"' if isinstance(value, str) else str(value)
        text, changed = re.subn(rf"^{key} = .*$", f"{key} = {written}", text, count=1, flags=re.MULTILINE)
        assert changed == 1
    pyproject.write_text(text, encoding="utf-8")


def exit_code(arguments: Sequence[str]) -> int | str | None:
    """What the console script would end with."""
    try:
        return main(arguments)
    except SystemExit as ended:  # argparse says what it does not know
        return ended.code


def federate_in_process(
    _app: Path,
    settings: Settings,
    simulation: str | None,
    progress: Progress,  # noqa: ARG001
    *,
    link: AbstractContextManager[Connection],  # noqa: ARG001
) -> RunLog:
    """What `fedkron.commands.run.federate` does, without Flower's processes."""
    found = re.search(r"num-supernodes=(\d+)", simulation or "")
    assert found, "a run on a SuperLink cannot be run here: say so in NOT_RUN"
    config = run_config(settings)
    free_run_folder(settings)
    return read_run(federate(config, grid_of(config, int(found[1]))).folder)


def check_extras(requirements: Sequence[str]) -> None:
    """What pip is asked for is fedkron with extras that it has."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for requirement in requirements:
        match = re.fullmatch(r"fedkron(?:\[(?P<extras>[\w,-]+)\])?", requirement)
        assert match, f"pip is asked for {requirement}"
        extras = set(filter(None, (match["extras"] or "").split(",")))
        assert extras <= project["optional-dependencies"].keys()


def check_options(program: str, words: Sequence[str]) -> None:
    """The program is there, and its help names all options that are given."""
    arguments = [sys.executable, "--help"]
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as output:
        patch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as ended:
            runpy.run_module(program.replace("/", ".").removesuffix(".py"), run_name="__main__")
    assert ended.value.code == 0
    options = {word.partition("=")[0] for word in words if word.startswith("--")}
    known = set(re.findall(r"--[\w-]+", output.getvalue()))
    assert options <= known, f"{program} does not know {options - known}"
