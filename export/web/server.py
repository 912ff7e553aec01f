"""Serve the page and one bundle, with the headers that WebAssembly with threads asks for."""

from __future__ import annotations

from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

from fedkron.edge.manifest import read_manifest
from fedkron.errors import BundleError

PAGE = Path(__file__).parent
INSTALL = f"npm ci --omit=dev --prefix {PAGE.parent.name}/{PAGE.name}"
"""The command that fetches the page's two libraries."""

HEADERS = {
    # Together they give the page shared memory, which threads need.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    # Whoever exports again under the same name wants to see the new bundle.
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
}
_STATIC = {"": "index.html", "style.css": "style.css"}
_FOLDERS = ("js", "node_modules")


def make_server(bundle: Path, *, host: str = "127.0.0.1", port: int = 0) -> ThreadingHTTPServer:
    """A server of the page at `/` and the bundle at `/bundle/`; port 0 is any free one.

    Raises `BundleError` when `bundle` is not a bundle or the page's libraries are not installed, `OSError`
    when the port is taken.
    """
    read_manifest(bundle)
    if not (PAGE / "node_modules" / "onnxruntime-web").is_dir():
        raise BundleError(f"the page's libraries are not installed: run make web, or {INSTALL}")
    return ThreadingHTTPServer((host, port), partial(_Handler, bundle=bundle))


class _Handler(SimpleHTTPRequestHandler):
    extensions_map = SimpleHTTPRequestHandler.extensions_map | {
        ".mjs": "text/javascript",
        ".js": "text/javascript",
        ".wasm": "application/wasm",
    }

    def __init__(self, *arguments: Any, bundle: Path) -> None:  # noqa: ANN401
        self._bundle = bundle
        super().__init__(*arguments, directory=str(PAGE))

    def translate_path(self, path: str) -> str:
        """The file that a URL means; one that does not exist for all that is not served."""
        first, _, rest = unquote(urlsplit(path).path).lstrip("/").partition("/")
        if not rest and first in _STATIC:
            return str(PAGE / _STATIC[first])
        folder = self._bundle if first == "bundle" else PAGE / first
        if first in (*_FOLDERS, "bundle") and (folder / rest).resolve().is_relative_to(folder.resolve()):
            return str(folder / rest)
        return str(PAGE / "missing")

    def list_directory(self, path: Any) -> BinaryIO | None:  # type: ignore[override]  # noqa: ANN401, ARG002
        """Nobody needs to browse."""
        self.send_error(HTTPStatus.NOT_FOUND)
        return None

    def end_headers(self) -> None:
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, *_: object) -> None:
        """The terminal is for the address."""
