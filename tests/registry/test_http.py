"""A store that a plain web server shows: read-only, with and without listings of its folders."""

from pathlib import Path

import pytest
from registry_cases import adapter, published

from fedkron.errors import ExchangeError
from fedkron.exchange import load_adapter
from fedkron.registry.listing import Filter, listed
from fedkron.registry.pull import Order, pull_to_folder
from fedkron.registry.storage import open_storage
from fedkron.registry.store import find, find_single, reference


def test_a_store_and_a_single_publication_are_read_over_http(web: str, tmp_path: Path) -> None:
    local = open_storage(str(tmp_path / "store"))
    for seed in (1, 2):
        signed = published(local, tmp_path / f"files-{seed}", seed)
    storage = open_storage(f"{web}/store")
    assert [str(item.release) for item in listed(storage, Filter(), all_releases=True)] == ["1", "2"]
    found = find(storage, reference("film"))
    assert found.signed == signed
    folder = pull_to_folder(Order(found, is_exact=False), tmp_path / "pulled")
    pulled = load_adapter(folder / "adapter.safetensors").state
    assert all((pulled[name] == values).all() for name, values in adapter(2).state.items())
    assert find_single(open_storage(f"{web}/pulled")).signed == signed


def test_a_web_server_without_listings_gives_what_is_named(web: str, tmp_path: Path) -> None:
    signed = published(open_storage(str(tmp_path / "store")), tmp_path / "files")
    # A folder with this file is shown as it, not as a listing.
    (tmp_path / "store/adapters/film/index.html").write_text("nothing to see")
    storage = open_storage(f"{web}/store")
    assert find(storage, reference("film@1")).signed == signed
    with pytest.raises(ExchangeError, match="ask for film@RELEASE"):
        find(storage, reference("film"))


def test_what_is_too_long_or_not_there_is_refused(web: str, tmp_path: Path) -> None:
    published(open_storage(str(tmp_path / "store")), tmp_path / "files")
    storage = open_storage(f"{web}/store")
    with pytest.raises(ExchangeError, match=r"film@2"):
        find(storage, reference("film@2"))
    manifest = tmp_path / "store/adapters/film/1.json"
    manifest.write_bytes(manifest.read_bytes() + b" " * 2**21)
    with pytest.raises(ExchangeError, match="has more than 1048576 bytes"):
        find(storage, reference("film@1"))
    with pytest.raises(ExchangeError, match="cannot be"):
        published(storage, tmp_path / "more")
    with pytest.raises(ExchangeError):
        find(open_storage("http://127.0.0.1:1/store"), reference("film"))
