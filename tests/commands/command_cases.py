"""What the command tests share."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from fedkron.cli import main

Capture = pytest.CaptureFixture[str]


@dataclass(frozen=True)
class Finished:
    """A run of two tasks on a tiny base, and its exported bundle."""

    run: Path
    base: Path
    bundle: Path


@dataclass(frozen=True)
class Command:
    """One subcommand, called in this process."""

    name: str

    def output_of(self, capsys: Capture, *arguments: object) -> str:
        """What it prints when it succeeds."""
        capsys.readouterr()
        assert main([self.name, *map(str, arguments)]) == 0
        return capsys.readouterr().out

    def facts_of(self, capsys: Capture, *arguments: object) -> dict[str, object]:
        """What it says with --json."""
        facts: dict[str, object] = json.loads(self.output_of(capsys, *arguments, "--json"))
        return facts

    def error_of(self, capsys: Capture, *arguments: object) -> str:
        """The one line that it prints when it fails."""
        capsys.readouterr()
        assert main([self.name, *map(str, arguments)]) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("fedkron: ")
        assert captured.err.count("\n") == 1
        return captured.err
