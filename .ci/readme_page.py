"""README.md is the first page of the documentation: a hook of MkDocs (`hooks` in mkdocs.yml).

In the repository its links begin with `docs/`, and pages link to it as `../README.md`. On the site it is
`index.md` beside them.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

README = Path(__file__).parent.parent / "README.md"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the README as the index."""
    text = re.sub(r'(\]\(|src=")docs/', r"\1", README.read_text(encoding="utf-8"))
    files.append(File.generated(config, "index.md", content=text))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Turn links to the README into links to the index."""
    return markdown.replace("../README.md", "index.md")
