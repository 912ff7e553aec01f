"""What pages say about commands and settings is so, and nothing of these is left out."""

import argparse
import re

import pytest
from blocks import PAGES, ROOT, commands, prose

from fedkron.cli import COMMANDS
from fedkron.settings import Settings, run_config


def parsers() -> dict[str, argparse.ArgumentParser]:
    """The parser of each subcommand."""
    subparsers = argparse.ArgumentParser().add_subparsers()
    for command in COMMANDS:
        command.add_parser(subparsers)
    return dict(subparsers.choices)


PARSERS = parsers()
NO_COMMANDS = ("fedkron secure aggregation 1: ", "fedkron publication 1")
"""Code that begins as a command does."""


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    """All options of a parser and of those below it."""
    found = set(parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                found |= options_of(below)
    return found


def named(page: str) -> list[str]:
    """Commands in code within a page's sentences and tables."""
    spans = re.findall(r"`([^`\n]+)`", prose(page))
    return [span for span in spans if re.match(r"fedkron [a-z]", span) and span not in NO_COMMANDS]


@pytest.mark.parametrize("page", PAGES)
def test_subcommands_and_options_named_in_sentences_exist(page: str) -> None:
    for span in named(page):
        words = span.split()
        assert words[1] in PARSERS, f"{page}: {span}"
        options = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        assert options <= options_of(PARSERS[words[1]]), f"{page}: {span}"


def test_every_subcommand_is_in_the_documentation() -> None:
    text = "\n".join([*(span for page in PAGES for span in (*named(page), *commands(page)))])
    missing = {name for name in PARSERS if not re.search(rf"\bfedkron {name}\b", text)}
    assert not missing


def test_every_setting_is_in_the_documentation_and_none_else() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    table = text.partition("| key |")[2].partition("\n\n")[0]
    rows = [line.split("|")[1] for line in table.splitlines()[2:] if line.startswith("|")]
    documented = [key for row in rows for key in re.findall(r"`([\w.-]+)`", row)]
    assert sorted(documented) == sorted(run_config(Settings()))
