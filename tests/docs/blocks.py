"""The fenced blocks of the documentation, and the commands in them."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = tuple(
    str(path.relative_to(ROOT)) for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
)
SHELL = ("bash", "console")
RUN = (*SHELL, "python")
SHOWN = ("text", "ini", "nginx", "toml", "json", "diff")
"""Languages of blocks that show something, and that nothing runs."""

_BLOCK = re.compile(r"^```(?P<language>[\w-]*)[^\n]*\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    page: str
    language: str
    text: str

    def commands(self) -> Iterator[str]:
        """The commands of a block for the shell: lines that belong together, without comments.

        In a `console` block they begin with `$ `, and all else is what they print.
        """
        lines = re.sub(r" *\\\n *", " ", self.text).splitlines()
        if self.language == "console":
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        waiting = ""
        for line in lines:
            waiting += line if not waiting else f"\n{line}"
            try:
                words = shlex.split(waiting, comments=True)
            except ValueError:  # a quotation goes on in the next line
                continue
            if words:
                yield _without_comment(waiting)
            waiting = ""
        assert not waiting, f"{self.page}: a quotation does not end: {waiting}"


def blocks(page: str) -> list[Block]:
    """All fenced blocks of a page, in order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [Block(page, match["language"], match["text"]) for match in _BLOCK.finditer(text)]


def commands(page: str) -> list[str]:
    """All commands of a page, in order."""
    return [command for block in blocks(page) if block.language in SHELL for command in block.commands()]


def prose(page: str) -> str:
    """The page without its fenced blocks."""
    return _BLOCK.sub("", (ROOT / page).read_text(encoding="utf-8"))


def _without_comment(command: str) -> str:
    """Comments begin at ` #`, outside of quotations."""
    lexer = shlex.shlex(command, posix=False, punctuation_chars=False)
    lexer.whitespace_split = True
    lexer.commenters = ""
    kept = command
    position = 0
    for word in lexer:
        position = command.index(word, position)
        if word.startswith("#"):
            kept = command[:position]
            break
        position += len(word)
    return kept.strip()
