"""What the tests of clients, server and reports share: a tiny base on disk, written once."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from federation_cases import save_tiny_bert, write_choices, write_texts


def pytest_configure() -> None:
    """What a shell starts in the background ignores SIGINT, and so would all that the tests start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # before xdist looks at the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """On several cores, one process runs all tests of a file: what they share is made once."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.name))


@pytest.fixture(scope="session", autouse=True)
def _own_keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The tests sign, and trust, with keys of their own, not with those of whoever runs them."""
    keys = tmp_path_factory.mktemp("keys")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDKRON_AUDIT_KEY", str(keys / "audit-key.pem"))
        patch.setenv("FEDKRON_PUBLISHER_KEY", str(keys / "publisher-key.pem"))
        patch.setenv("FEDKRON_KNOWN_PUBLISHERS", str(keys / "known-publishers"))
        yield


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of two layers with random weights, and its tokenizer."""
    return save_tiny_bert(tmp_path_factory.mktemp("bases") / "tiny-bert")


@pytest.fixture(scope="session")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tasks `animals` and `pets` (same two labels), `colours` (three), `quiz` (choices)."""
    folder = tmp_path_factory.mktemp("tasks")
    write_texts(folder / "animals", {"cat": "purr", "dog": "bark"}, seed=1)
    write_texts(folder / "pets", {"cat": "milk", "dog": "leash"}, seed=2)
    write_texts(folder / "colours", {"red": "rose", "green": "leaf", "blue": "sky"}, seed=3)
    write_choices(folder / "quiz", seed=4)
    return folder
