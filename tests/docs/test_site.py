"""The documentation as a site: built without a warning, whole, and complete in itself."""

import importlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from blocks import PAGES, ROOT, prose
from browser_cases import chromium

PACKAGES = ("adapters", "compression", "aggregation", "flower", "exchange", "audit")

pytestmark = pytest.mark.xdist_group("site")


class Tags(HTMLParser):
    """Ids of a page, and what it loads by itself."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.loaded: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if "id" in values:
            self.ids.add(values["id"])
        if tag in ("script", "img", "iframe", "source") and "src" in values:
            self.loaded.add(values["src"])
        if tag == "link" and values.get("rel") != "canonical":
            self.loaded.add(values.get("href", ""))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as `make docs` does it; a warning is an error (`--strict`)."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_in_the_site(site: Path) -> None:
    for page in PAGES:
        name = (
            "index.html" if page == "README.md" else page.removeprefix("docs/").replace(".md", "/index.html")
        )
        assert (site / name).is_file(), f"{page}: a line under `nav` in mkdocs.yml is missing"


@pytest.mark.parametrize("package", PACKAGES)
def test_the_reference_has_all_public_names(site: Path, package: str) -> None:
    public = importlib.import_module(f"fedkron.{package}").__all__
    documented = {name.rpartition(".")[2] for name in Tags(site / "reference" / package / "index.html").ids}
    # A constant without a docstring explains itself.
    missing = {name for name in set(public) - documented if not name.isupper()}
    assert not missing


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        loaded = Tags(page).loaded
        assert loaded
        assert not {address for address in loaded if re.match(r"(https?:)?//", address)}, page
    for style in site.rglob("*.css"):
        assert not re.findall(r"url\(['\"]?(?:https?:)?//|@import", style.read_text(encoding="utf-8")), style


# In the repository links and anchors are GitHub's business, which MkDocs does not check.

_LINK = re.compile(r"(?<!!)\[[^\]]*\]\((?P<target>[^)\s]+)\)|!\[[^\]]*\]\((?P<image>[^)\s]+)\)")


def github_anchors(page: Path) -> set[str]:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    anchors = set()
    for heading in re.findall(r"^#+ +(.+?) *$", text, flags=re.MULTILINE):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
        anchors.add(re.sub(r"[^\w\- ]", "", shown).replace(" ", "-"))
    return anchors


def links(page: str) -> Iterator[str]:
    for match in _LINK.finditer(re.sub(r"`[^`\n]*`", "code", prose(page))):
        target = match["target"] or match["image"]
        if not re.match(r"[a-z]+:", target):
            yield target


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere_in_the_repository(page: str) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), f"{page}: {link}"
        if anchor:
            assert anchor in github_anchors(target), f"{page}: {link}"


def test_the_site_in_a_browser_asks_nobody_else_and_its_search_finds(site: Path, tmp_path: Path) -> None:
    handler = partial(QuietHandler, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, chromium(tmp_path) as browser:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        root = f"http://127.0.0.1:{server.server_port}/"
        asked: list[str] = []
        page = browser.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{root}tutorials/own-task/")
        page.locator(".md-search__input").first.fill("ecsq")
        page.locator(".md-search-result__link").first.wait_for()
        page.goto(f"{root}reference/adapters/")
        server.shutdown()
    elsewhere = [address for address in asked if not address.startswith((root, "data:", "blob:"))]
    assert len(asked) > 5
    assert not elsewhere


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""
