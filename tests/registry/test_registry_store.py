"""Releases in real storages: a folder, S3, memory; alone, together, cut off, and altered."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from registry_cases import (
    CONDITIONS,
    KEY,
    OTHER_KEY,
    adapter,
    files_in,
    prepared,
    published,
    resigned,
    written,
)

from fedkron.errors import ExchangeError
from fedkron.exchange import load_adapter, on_folded_base, save_adapter, save_terms
from fedkron.registry.fetch import fetch
from fedkron.registry.listing import Filter, Listed, listed
from fedkron.registry.material import Choice, material
from fedkron.registry.publish import prepare, publish
from fedkron.registry.storage import Storage, open_storage
from fedkron.registry.store import Release, find, reference, releases

ROOT = Path(__file__).parents[2]
PUBLISHERS, TIMES = 4, 3


@pytest.fixture(params=["folder", "s3", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "folder":
        return open_storage(str(tmp_path / "store"))
    if request.param == "memory":
        return open_storage(f"memory://{uuid4().hex}")
    return open_storage(f"{request.getfixturevalue('bucket')}/some/store")


def shown(storage: Storage, *, every: bool = True, **wanted: str) -> list[str]:
    return [
        f"{item.name}@{item.release.number}" for item in listed(storage, Filter(**wanted), all_releases=every)
    ]


def test_what_is_published_is_listed_found_and_fetched(store: Storage, tmp_path: Path) -> None:
    first = published(store, tmp_path / "one", seed=1)
    published(store, tmp_path / "two", seed=2)
    published(store, tmp_path / "three", seed=3, name="spam")
    assert shown(store) == ["film@1", "film@2", "spam@1"]
    assert shown(store, every=False) == ["film@2", "spam@1"]
    assert shown(store, task="film") == ["film@1", "film@2", "spam@1"]
    assert shown(store, base="tin", contract=first.publication.contract[:8]) == shown(store)
    assert shown(store, base="ab" * 8) == shown(store)
    assert shown(store, task="other") == shown(store, base="b" * 8) == shown(store, contract="0" * 64) == []
    for text, seed in (("film", 2), ("film@latest", 2), ("film@2", 2), ("film@1", 1), ("spam", 3)):
        found = find(store, reference(text))
        folder = tmp_path / f"fetched-{text}"
        folder.mkdir()
        fetch(found, found.signed.publication.files, folder)
        loaded, expected = load_adapter(folder / "adapter.safetensors"), adapter(seed)
        assert {name: v.tobytes() for name, v in loaded.state.items()} == {
            name: v.tobytes() for name, v in expected.state.items()
        }
    for text in ("film@3", "other", "other@1"):
        with pytest.raises(ExchangeError, match="has no"):
            find(store, reference(text))


@pytest.mark.parametrize(
    "text", ["", "@1", "film@", "film@0", "film@x", "film@1@2", "../film", "film@1-", "a/b"]
)
def test_what_nobody_can_ask_for(text: str) -> None:
    with pytest.raises(ExchangeError):
        reference(text)


def run_program(program: str, *arguments: object) -> subprocess.Popen[str]:
    """A Python program in a process of its own, with what the tests have here."""
    setup = 'import sys; sys.path.insert(0, "tests/registry")\n'
    return subprocess.Popen(
        [sys.executable, "-c", setup + program, *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def publish_at_once(store: str, folder: Path) -> list[dict[str, int]]:
    """Processes that publish at the same time, some times each; the manifests that they were given."""
    program = f"""
import multiprocessing
from pathlib import Path
from registry_cases import KEY, prepared
from fedkron.registry.publish import publish
from fedkron.registry.storage import open_storage

url, folder = sys.argv[1], Path(sys.argv[2])
fork = multiprocessing.get_context("fork")
barrier = fork.Barrier({PUBLISHERS})

def work(number):
    ready, store = prepared(folder / str(number), seed=number), open_storage(url)
    barrier.wait()
    said = [publish(store, ready, KEY).content.decode() for _ in range({TIMES})]
    (folder / f"{{number}}.jsonl").write_text("\\n".join(said))

processes = [fork.Process(target=work, args=(number,)) for number in range({PUBLISHERS})]
for process in processes:
    process.start()
for process in processes:
    process.join()
sys.exit(any(process.exitcode for process in processes))
"""
    process = run_program(program, store, folder)
    assert process.wait(timeout=120) == 0
    files = sorted(folder.glob("*.jsonl"))
    assert len(files) == PUBLISHERS
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_of_many_who_publish_at_once_each_gets_a_release_of_its_own(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    url = str(tmp_path / "store") if kind == "folder" else request.getfixturevalue("bucket")
    said = publish_at_once(url, tmp_path)
    assert sorted(manifest["release"] for manifest in said) == list(range(1, TIMES * PUBLISHERS + 1))
    storage = open_storage(url)
    assert [str(release) for release in releases(storage, "film")] == [
        str(number) for number in range(1, TIMES * PUBLISHERS + 1)
    ]
    for manifest in said:
        there = find(storage, reference(f"film@{manifest['release']}")).signed
        assert json.loads(there.content) == manifest


def test_where_a_storage_cannot_tell_who_was_first_both_are_there(tmp_path: Path) -> None:
    storage = open_storage(f"memory://{uuid4().hex}")
    first = published(storage, tmp_path / "one", seed=1)
    assert [release.number for release in releases(storage, "film")] == [1]
    # Another one that did not see the first.
    twin = prepared(tmp_path / "two", seed=2, key=OTHER_KEY).signed(1, OTHER_KEY)
    storage.put(f"adapters/film/1-{twin.digest[:16]}.json", twin.content)
    with pytest.raises(ExchangeError, match=r"published twice.*film@1-[0-9a-f]{16} or film@1-[0-9a-f]{16}"):
        find(storage, reference("film@1"))
    for signed in (first, twin):
        assert find(storage, reference(f"film@1-{signed.digest[:16]}")).signed == signed
    greatest = max((first, twin), key=lambda signed: signed.digest)
    assert find(storage, reference("film")).signed == greatest
    assert published(storage, tmp_path / "three").publication.release == 2


class Overwriting(MemoryFileSystem):
    """A service like those that say nothing when they are asked to create what is there, and overwrite it."""

    protocol = "gs"
    store: dict[str, object] = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: object) -> None:  # noqa: ARG002
        super().pipe_file(path, value)


def test_a_service_that_overwrites_without_a_word_is_found_out(tmp_path: Path) -> None:
    storage = Storage("gs://bucket", Overwriting(), "/bucket")
    signed = published(storage, tmp_path)
    assert releases(storage, "film") == [Release(1, signed.digest[:16])]


class Stopped(BaseException):
    """The power went off."""


@pytest.mark.parametrize("stop", range(5))
def test_a_publisher_that_is_cut_off_leaves_nothing_that_anyone_sees(stop: int, tmp_path: Path) -> None:
    url = str(tmp_path / "store")
    published(open_storage(url), tmp_path / "first", seed=1)
    before = find(open_storage(url), reference("film")).signed
    steps = iter(range(100))

    class Cut(Storage):
        """Ends before its step number `stop`."""

        def put(self, path: str, content: bytes) -> None:
            if next(steps) == stop:
                raise Stopped
            super().put(path, content)

        def create(self, path: str, content: bytes) -> None:
            if next(steps) == stop:
                raise Stopped
            super().create(path, content)

    whole = open_storage(url)
    with pytest.raises(Stopped):
        publish(Cut(whole.url, whole.fs, whole.root), prepared(tmp_path / "second", seed=2), KEY)
    assert shown(whole) == ["film@1"]
    assert find(whole, reference("film")).signed == before
    assert published(whole, tmp_path / "third", seed=2).publication.release == 2


def test_a_publisher_that_is_killed_leaves_whole_releases_only(tmp_path: Path) -> None:
    """SIGKILL at moments that nobody chose: what is listed can be fetched, and publishing goes on."""
    program = """
from pathlib import Path
from registry_cases import KEY, prepared
from fedkron.registry.publish import publish
from fedkron.registry.storage import open_storage

store, seed = open_storage(sys.argv[1]), 0
while True:
    seed += 1
    print(publish(store, prepared(Path(sys.argv[2]), seed=seed), KEY).publication.release, flush=True)
"""
    url = str(tmp_path / "store")
    process = run_program(program, url, tmp_path / "files")
    assert process.stdout is not None
    for _ in range(5):
        last = int(process.stdout.readline())
    process.kill()
    last = max([last, *(int(line) for line in process.communicate()[0].splitlines())])
    storage = open_storage(url)
    found = list(listed(storage, Filter(), all_releases=True))
    assert [item.release.number for item in found] == list(range(1, len(found) + 1))
    assert last <= len(found) <= last + 1
    for item in found:
        folder = tmp_path / f"fetched-{item.release}"
        folder.mkdir()
        release = find(storage, reference(f"film@{item.release}"))
        fetch(release, release.signed.publication.files, folder)
    assert published(storage, tmp_path / "again").publication.release == len(found) + 1


@pytest.fixture
def one(tmp_path: Path) -> tuple[Path, Storage]:
    """A store in a folder with one release."""
    storage = open_storage(str(tmp_path / "store"))
    published(storage, tmp_path / "files")
    return tmp_path / "store", storage


def fetched(storage: Storage, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    found = find(storage, reference("film"))
    fetch(found, found.signed.publication.files, folder)


def test_each_change_of_a_stored_byte_is_found(one: tuple[Path, Storage], tmp_path: Path) -> None:
    folder, storage = one
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    assert len(paths) == 5  # marker, manifest, adapter, head, card
    for path in paths:
        content = path.read_bytes()
        for position in {0, 7, 8, len(content) - 1, *range(0, len(content), 61)}:
            altered = bytearray(content)
            altered[position] ^= 1
            path.write_bytes(altered)
            with pytest.raises(ExchangeError):
                fetched(storage, tmp_path / "fetched")
        for other in (content[:-1], content + b"\0", b"", content * 1000):
            path.write_bytes(other)
            with pytest.raises(ExchangeError):
                fetched(storage, tmp_path / "fetched")
        path.unlink()
        with pytest.raises(ExchangeError):
            fetched(storage, tmp_path / "fetched")
        path.write_bytes(content)
    fetched(storage, tmp_path / "fetched")


def test_terms_go_with_the_adapter_that_needs_them(tmp_path: Path) -> None:
    terms = [{"dense/0.A": np.ones((2, 2), np.float32)}, {"dense/0.A": np.zeros((2, 2), np.float32)}]
    file, _ = written(tmp_path / "files")
    save_adapter(file, on_folded_base(adapter(), terms))
    save_terms(file.with_name("terms.safetensors"), terms)
    storage = open_storage(str(tmp_path / "store"))
    publish(storage, prepare(material(file, Choice()), KEY, CONDITIONS), KEY)
    fetched(storage, tmp_path / "fetched")
    (found,) = {path.read_bytes() for path in (tmp_path / "fetched").glob("terms.*")}
    assert found == file.with_name("terms.safetensors").read_bytes()
    save_terms(file.with_name("terms.safetensors"), terms[:1])
    with pytest.raises(ExchangeError, match="does not hold them"):
        material(file, Choice())


def test_a_manifest_in_the_place_of_another_is_refused(one: tuple[Path, Storage]) -> None:
    folder, storage = one
    manifest = (folder / "adapters/film/1.json").read_bytes()
    for path in ("adapters/film/2.json", "adapters/spam/1.json", f"adapters/film/1-{'0' * 16}.json"):
        place = folder / path
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(manifest)
        name, _, file = path.removeprefix("adapters/").partition("/")
        with pytest.raises(ExchangeError, match="put in the place of another"):
            find(storage, reference(f"{name}@{file.removesuffix('.json')}"))
        (item,) = (i for i in listed(storage, Filter(), all_releases=True) if i.signed is None)
        assert isinstance(item, Listed)
        assert "in the place of another" in item.problem
        place.unlink()


def test_files_that_lie_are_refused_though_their_hashes_are_signed(
    one: tuple[Path, Storage], tmp_path: Path
) -> None:
    """A publisher that is trusted may still have signed an adapter that is not what the manifest says."""
    folder, storage = one
    path = folder / "adapters/film/1.json"
    manifest = path.read_bytes()
    file, _ = written(tmp_path / "other")
    save_adapter(file, adapter(base_name="org/another"))
    data = file.read_bytes()

    def other_file(content: dict[str, object]) -> None:
        files = content["files"]
        assert isinstance(files, list)
        files[1].update(size=len(data), sha256=hashlib.sha256(data).hexdigest())

    (folder / "blobs" / hashlib.sha256(data).hexdigest()).write_bytes(data)
    lies = {
        "another contract": lambda content: content.update(contract="0" * 64),
        "another base": lambda content: content["base"].update(fingerprint="0" * 64),
        "another name of the base": other_file,
    }
    for message, lie in lies.items():
        path.write_bytes(resigned(manifest, lie))
        with pytest.raises(ExchangeError, match=message):
            fetched(storage, tmp_path / "fetched")


def test_what_is_no_store_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ExchangeError, match=r"it has no fedkron-exchange\.json"):
        list(listed(open_storage(str(tmp_path / "empty")), Filter(), all_releases=True))
    (tmp_path / "empty/fedkron-exchange.json").write_text('{"format":"fedkron-exchange","version":2}')
    with pytest.raises(ExchangeError, match="another version"):
        published(open_storage(str(tmp_path / "empty")), tmp_path / "files")
    assert files_in(tmp_path / "empty").keys() >= {"fedkron-exchange.json"}
    assert not (tmp_path / "empty/adapters").exists()
    with pytest.raises(ExchangeError, match="cannot be opened"):
        open_storage("nowhere://x")


def test_a_bucket_that_is_not_there_is_named(bucket: str, tmp_path: Path) -> None:
    storage = open_storage(f"{bucket}-not-there/store")
    with pytest.raises(ExchangeError, match="not-there"):
        published(storage, tmp_path)
    with pytest.raises(ExchangeError, match="not-there"):
        list(listed(storage, Filter(), all_releases=True))
