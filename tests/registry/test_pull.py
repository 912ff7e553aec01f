"""Pulled into a folder: whole or not at all, and no older release unasked."""

from pathlib import Path

import pytest
from registry_cases import KEY, OTHER_KEY, files_in, head, prepared, published

from fedkron.errors import ExchangeError
from fedkron.exchange import load_head
from fedkron.registry.pull import Order, pull_to_folder
from fedkron.registry.storage import open_storage
from fedkron.registry.store import find, find_single, reference


def order(store: Path, text: str) -> Order:
    return Order(find(open_storage(str(store)), reference(text)), is_exact="@" in text)


def test_a_newer_release_takes_the_place_of_an_older_one_and_not_the_reverse(tmp_path: Path) -> None:
    store, folder = tmp_path / "store", tmp_path / "there/film"
    published(open_storage(str(store)), tmp_path / "one", 1)
    pull_to_folder(order(store, "film"), folder)
    first = files_in(folder)
    assert first.keys() == {"README.md", "adapter.safetensors", "head-0.safetensors", "publication.json"}
    assert first["adapter.safetensors"] == (tmp_path / "one/adapter.safetensors").read_bytes()
    assert load_head(folder / "head-0.safetensors").labels == head().labels
    published(open_storage(str(store)), tmp_path / "two", 2)
    pull_to_folder(order(store, "film"), folder)
    second = files_in(folder)
    assert second["adapter.safetensors"] == (tmp_path / "two/adapter.safetensors").read_bytes()
    (store / "adapters/film/2.json").unlink()  # the store was put back to an earlier state
    with pytest.raises(ExchangeError, match=r"is film@2, and the latest on offer is 1.*say film@1"):
        pull_to_folder(order(store, "film"), folder)
    assert files_in(folder) == second
    pull_to_folder(order(store, "film@1"), folder)
    assert files_in(folder) == first
    assert [path.name for path in folder.parent.iterdir()] == ["film"]


def test_a_folder_with_other_things_stays_as_it_is(tmp_path: Path) -> None:
    store, folder = tmp_path / "store", tmp_path / "there"
    storage = open_storage(str(store))
    published(storage, tmp_path / "files")
    published(storage, tmp_path / "files", name="spam", key=OTHER_KEY)
    folder.mkdir()
    (folder / "mine").write_text("precious")
    with pytest.raises(ExchangeError, match="holds other things"):
        pull_to_folder(order(store, "film"), folder)
    (folder / "mine").unlink()
    pull_to_folder(order(store, "film"), folder)
    (folder / "mine").write_text("precious")
    with pytest.raises(ExchangeError, match="holds mine, which was not pulled"):
        pull_to_folder(order(store, "film"), folder)
    assert (folder / "mine").read_text() == "precious"
    (folder / "mine").unlink()
    with pytest.raises(ExchangeError, match="is film@1, not a release of spam"):
        pull_to_folder(order(store, "spam"), folder)
    (tmp_path / "file").touch()
    with pytest.raises(ExchangeError, match="is a file"):
        pull_to_folder(order(store, "film"), tmp_path / "file")


def test_nothing_is_written_of_what_is_damaged(tmp_path: Path) -> None:
    store, folder = tmp_path / "store", tmp_path / "there/film"
    signed = published(open_storage(str(store)), tmp_path / "files")
    for file in signed.publication.files:
        path = store / "blobs" / file.sha256
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(ExchangeError, match="it was altered"):
            pull_to_folder(order(store, "film"), folder)
        assert list(folder.parent.iterdir()) == []
        path.write_bytes(content)
    # Publishing again mends it.
    (store / "blobs" / signed.publication.files[0].sha256).write_bytes(b"")
    published(open_storage(str(store)), tmp_path / "files")
    pull_to_folder(order(store, "film@2"), folder)


def test_a_pulled_folder_is_a_publication_that_can_be_passed_on(tmp_path: Path) -> None:
    store = tmp_path / "store"
    signed = published(open_storage(str(store)), tmp_path / "files")
    pull_to_folder(order(store, "film"), tmp_path / "one")
    again = find_single(open_storage(str(tmp_path / "one")))
    assert again.signed == signed
    pull_to_folder(Order(again, is_exact=False), tmp_path / "two")
    assert files_in(tmp_path / "one") == files_in(tmp_path / "two")
    (tmp_path / "one/publication.json").write_bytes(prepared(tmp_path / "x", 9).signed(1, KEY).content)
    foreign = Order(find_single(open_storage(str(tmp_path / "one"))), is_exact=False)
    with pytest.raises(ExchangeError, match="it was altered"):
        pull_to_folder(foreign, tmp_path / "three")
    with pytest.raises(ExchangeError, match=r"has no publication\.json"):
        find_single(open_storage(str(store)))
