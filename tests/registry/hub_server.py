"""A server that speaks as much of the Hugging Face Hub's protocol as its client needs here, over a folder.

ROOT/USER/REPOSITORY/COMMIT/…    the files of each commit; the branch is the file `main` with a commit's name
"""

import base64
import hashlib
import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import yaml


class HubServer(ThreadingHTTPServer):
    """Serves and changes repositories in a folder; keeps what was asked for."""

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.requests: list[str] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def head(self, repository: str) -> str:
        return (self.root / repository / "main").read_text()

    def files(self, repository: str, revision: str = "main") -> Path:
        commit = self.head(repository) if revision == "main" else revision
        return self.root / repository / commit

    def commit(self, repository: str, changes: dict[str, bytes | None]) -> str:
        """The branch with these files changed, or gone, as a new commit."""
        place = self.root / repository
        fresh = place / "new"
        if (place / "main").exists():
            shutil.copytree(self.files(repository), fresh)
        else:
            fresh.mkdir(parents=True)
        for path, content in changes.items():
            (fresh / path).parent.mkdir(parents=True, exist_ok=True)
            if content is None:
                (fresh / path).unlink()
            else:
                (fresh / path).write_bytes(content)
        name = hashlib.sha1(b"".join(p.read_bytes() for p in sorted(fresh.rglob("*")) if p.is_file()))
        name.update(str(len(list(place.iterdir()))).encode())
        fresh.rename(place / name.hexdigest())
        (place / "main").write_text(name.hexdigest())
        return name.hexdigest()


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._look()

    def do_HEAD(self) -> None:
        self._look()

    def _look(self) -> None:
        path = unquote(urlparse(self.path).path).strip("/")
        self.server.requests.append(f"{self.command} {path}")
        match path.split("/"):
            case ["api", "models", user, name, "tree", revision, *_]:
                self._tree(f"{user}/{name}", revision)
            case ["api", "models", user, name, "refs"]:
                ref = {
                    "name": "main",
                    "ref": "refs/heads/main",
                    "targetCommit": self.server.head(f"{user}/{name}"),
                }
                self._json({"branches": [ref], "converts": [], "tags": []})
            case ["api", "models", user, name, *_]:
                self._info(f"{user}/{name}")
            case [user, name, "resolve", revision, *file]:
                self._file(f"{user}/{name}", revision, "/".join(file))
            case _:
                self._fail(404, "EntryNotFound")

    def do_POST(self) -> None:
        path = unquote(urlparse(self.path).path).strip("/")
        self.server.requests.append(f"POST {path}")
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.lock:
            match path.split("/"):
                case ["api", "repos", "create"]:
                    self._create(json.loads(body))
                case ["api", "validate-yaml"]:
                    header = json.loads(body)["content"].split("---")[1]
                    assert isinstance(yaml.safe_load(header), dict)
                    self._json({"errors": [], "warnings": []})
                case ["api", "models", _, _, "preupload", _]:
                    files = json.loads(body)["files"]
                    modes = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
                    self._json({"files": [{"path": file["path"], **modes} for file in files]})
                case ["api", "models", user, name, "paths-info", revision]:
                    asked = {unquote(path) for path in json.loads(body)["paths"]}
                    self._tree(f"{user}/{name}", revision, asked)
                case ["api", "models", user, name, "commit", "main"]:
                    self._commit(f"{user}/{name}", [json.loads(line) for line in body.splitlines()])
                case _:
                    self._fail(404, "EntryNotFound")

    def _create(self, wanted: dict[str, Any]) -> None:
        repository = f"{wanted.get('organization', 'me')}/{wanted['name']}"
        url = {"url": f"{self.server.url}/{repository}", "id": repository}
        if (self.server.root / repository).exists():
            self._json(url, 409)
            return
        self.server.commit(repository, {".gitattributes": b""})
        (self.server.root / repository / "visibility").write_text(wanted.get("visibility", "public"))
        self._json(url)

    def _commit(self, repository: str, lines: list[dict[str, Any]]) -> None:
        changes: dict[str, bytes | None] = {}
        for line in lines:
            value = line["value"]
            match line["key"]:
                case "header":
                    if value.get("parentCommit") not in (None, self.server.head(repository)):
                        self._fail(412, "Conflict")
                        return
                case "file":
                    changes[value["path"]] = base64.b64decode(value["content"])
                case "deletedFile":
                    changes[value["path"]] = None
        oid = self.server.commit(repository, changes)
        self._json(
            {
                "commitUrl": f"{self.server.url}/{repository}/commit/{oid}",
                "commitOid": oid,
                "pullRequestUrl": None,
            }
        )

    def _info(self, repository: str) -> None:
        if not (self.server.root / repository).exists():
            self._fail(404, "RepoNotFound")
            return
        self._json({"id": repository, "sha": self.server.head(repository), "tags": [], "siblings": []})

    def _tree(self, repository: str, revision: str, only: set[str] | None = None) -> None:
        if not (self.server.root / repository).exists():
            self._fail(404, "RepoNotFound")
            return
        folder = self.server.files(repository, revision)
        entries = [
            {
                "type": "file",
                "path": p.relative_to(folder).as_posix(),
                "size": p.stat().st_size,
                "oid": _oid(p),
            }
            for p in sorted(folder.rglob("*"))
            if p.is_file()
        ]
        self._json([entry for entry in entries if only is None or entry["path"] in only])

    def _file(self, repository: str, revision: str, name: str) -> None:
        path = self.server.files(repository, revision) / name
        if not path.is_file():
            self._fail(404, "EntryNotFound")
            return
        headers = {"ETag": f'"{_oid(path)}"', "X-Repo-Commit": path.parent.name}
        self._answer(200, path.read_bytes(), headers)

    def _json(self, content: object, status: int = 200) -> None:
        self._answer(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _fail(self, status: int, code: str) -> None:
        self._answer(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _oid(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()
