"""Bytes in any place that fsspec reaches: a folder, S3, Google Cloud Storage, HTTP, the Hugging Face Hub."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from fedkron.atomic import create_atomically, write_atomically
from fedkron.errors import ExchangeError, FedKronError

_LOCAL = {"file", "local"}
_CREATES = {"s3", "s3a", "gs", "gcs"}
"""Protocols whose fsspec implementation hands `mode="create"` to the service, which decides."""
_STREAMED = {"http", "https", "hf"}
"""Protocols whose files are read in one request, not in blocks."""
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
PIECE = 2**20


class CannotCreate(Exception):  # noqa: N818  # it is an answer, not an error
    """This storage cannot say that a file was there before."""


@dataclass(frozen=True)
class Storage:
    """A place in a file system of fsspec. Paths are relative to it, with `/`.

    All methods raise `ExchangeError` when the storage cannot be reached, or says no.
    """

    url: str
    fs: Any
    root: str

    @property
    def protocols(self) -> set[str]:
        """What its URL may begin with."""
        found = self.fs.protocol
        return {found} if isinstance(found, str) else set(found)

    @property
    def is_local(self) -> bool:
        """Whether it is a folder."""
        return bool(self.protocols & _LOCAL)

    def pieces(self, path: str) -> Iterator[bytes]:
        """The content of a file, piece by piece. Raises `FileNotFoundError` when it is not there."""
        options = {"block_size": 0} if self.protocols & _STREAMED else {}
        # What a listing did not have, another process may have written since.
        self.fs.invalidate_cache()
        with self._naming(path), self.fs.open(self._at(path), "rb", **options) as file:
            while piece := file.read(PIECE):
                yield piece

    def read(self, path: str, limit: int) -> bytes:
        """A whole file. Raises `FileNotFoundError`, and `ExchangeError` above `limit` bytes."""
        content = b""
        for piece in self.pieces(path):
            content += piece
            if len(content) > limit:
                raise ExchangeError(f"{self.url}/{path} has more than {limit} bytes")
        return content

    def names(self, path: str) -> list[str]:
        """What lies directly in a folder, in order; nothing where there is no folder."""
        with self._naming(path):
            self.fs.invalidate_cache()
            try:
                found = self.fs.ls(self._at(path), detail=False)
            except (FileNotFoundError, NotADirectoryError):
                return []
        # Over HTTP these are links in a page.
        return sorted({unquote(str(name).rstrip("/").rpartition("/")[2]) for name in found} - {""})

    def put(self, path: str, content: bytes) -> None:
        """Write a file, whole, whatever was there. For content that is the same whoever writes it."""
        with self._writing(path):
            if self.is_local:
                write_atomically(Path(self._at(path)), content)
            else:
                self.fs.pipe_file(self._at(path), content)

    def create(self, path: str, content: bytes) -> None:
        """Write a file, whole, that was not there: of several who try, one succeeds.

        Raises `FileExistsError` for the others, and `CannotCreate` where nobody can say who came first.
        """
        with self._writing(path):
            if self.is_local:
                _link(Path(self._at(path)), content)
            elif self.protocols & _CREATES:
                self._conditional(path, content)
            else:
                raise CannotCreate

    def _conditional(self, path: str, content: bytes) -> None:
        try:
            self.fs.pipe_file(self._at(path), content, mode="create")
        except FileExistsError:
            raise
        except OSError:
            # Services do not agree on how they say that a file is there.
            self.fs.invalidate_cache()
            if not self.fs.exists(self._at(path)):
                raise
            raise FileExistsError(path) from None

    def _at(self, path: str) -> str:
        return f"{self.root.rstrip('/')}/{path}" if path else self.root

    @contextmanager
    def _writing(self, path: str) -> Iterator[None]:
        with self._naming(path):
            try:
                yield
            except FileNotFoundError as error:
                raise ExchangeError(f"{self.url}/{path} cannot be written: {error}") from error

    @contextmanager
    def _naming(self, path: str) -> Iterator[None]:
        """Every error names the place: each of fsspec's packages has errors of its own, of all sorts."""
        try:
            yield
        except (FedKronError, FileNotFoundError, FileExistsError, CannotCreate):
            raise
        except Exception as error:
            where = f"{self.url.rstrip('/')}/{path}"
            raise ExchangeError(f"{where} cannot be used: {str(error) or repr(error)}") from error


def open_storage(url: str) -> Storage:
    """A folder, or a URL that fsspec knows (`s3://bucket/path`, `https://…`, `hf://user/repo`).

    What such a storage needs besides (credentials, an endpoint) it takes from where its own package does:
    environment variables, or fsspec's configuration. Raises `ExchangeError` when there is no such protocol,
    or its package is missing.
    """
    from fsspec.core import url_to_fs

    try:
        fs, root = url_to_fs(url)
    except (ImportError, ValueError, OSError) as error:
        raise ExchangeError(f"{url} cannot be opened: {error}") from error
    return Storage(url.rstrip("/"), fs, str(root))


def _link(path: Path, content: bytes) -> None:
    try:
        create_atomically(path, content)
    except OSError as error:
        if error.errno in _NO_LINKS:
            raise CannotCreate from error
        raise
