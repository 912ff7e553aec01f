"""Adapters by name: loaded, replaced and dropped, by several threads, and never half."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from edge_cases import (
    ENCODINGS,
    SMALL,
    SMALL_HIDDEN,
    assert_same_adapter,
    random_head,
    small_adapter,
    small_device_adapter,
    small_heads,
    small_slot,
)

from fedkron.edge.device_adapter import save_device_adapter
from fedkron.edge.store import DEFAULT, AdapterStore, slot_feeds
from fedkron.errors import AdapterError, ContractError, TaskError
from fedkron.exchange import AdapterFile, save_adapter, save_head


@pytest.fixture
def store() -> AdapterStore:
    """With the adapter `default`, of seed 0."""
    store = AdapterStore(small_slot(), SMALL_HIDDEN)
    store.put(DEFAULT, small_device_adapter("as exported", 0))
    return store


@contextmanager
def meanwhile(*works: Callable[[], None]) -> Iterator[None]:
    """Run these over and over in threads of their own; an error in one of them fails the test."""
    done = threading.Event()
    errors: list[Exception] = []

    def repeat(work: Callable[[], None]) -> None:
        try:
            while not done.is_set():
                work()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=repeat, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert not errors, errors


def test_an_adapter_is_held_under_the_name_that_it_is_given(store: AdapterStore) -> None:
    assert list(store.snapshot()) == [DEFAULT]
    assert store[DEFAULT].name == DEFAULT
    store.put("mine", small_device_adapter("another name", 1))
    assert list(store.snapshot()) == [DEFAULT, "mine"]
    assert_same_adapter(store["mine"], small_device_adapter("mine", 1))
    store.put("mine", small_device_adapter("x", 2))
    assert len(store.snapshot()) == 2
    assert_same_adapter(store["mine"], small_device_adapter("mine", 2))
    store.drop("mine")
    assert list(store.snapshot()) == [DEFAULT]


def test_a_name_that_is_not_there_is_answered_with_those_that_are(store: AdapterStore) -> None:
    store.put("mine", small_device_adapter("mine", 1))
    with pytest.raises(TaskError, match="adapter 'yours' is not loaded: there are 'default', 'mine'"):
        store["yours"]
    with pytest.raises(TaskError, match="'yours' is not loaded"):
        store.drop("yours")
    with pytest.raises(TaskError, match="there are none"):
        AdapterStore(small_slot(), SMALL_HIDDEN)[DEFAULT]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_file_of_ours_brings_its_heads(encoding: str, tmp_path: Path) -> None:
    store = AdapterStore(small_slot(encoding), SMALL_HIDDEN)
    adapter = small_device_adapter("as it was exported", 1, encoding)
    save_device_adapter(tmp_path / "mine.v2.safetensors", adapter)
    assert store.load(tmp_path / "mine.v2.safetensors") == "mine.v2"
    assert store.load(tmp_path / "mine.v2.safetensors", "second") == "second"
    for name in store.snapshot():
        assert store[name].name == name
        assert_same_adapter(store[name], adapter)


def test_a_file_of_training_gets_the_heads_of_the_default_adapter(
    store: AdapterStore, tmp_path: Path
) -> None:
    save_adapter(tmp_path / "trained.safetensors", small_adapter(5))
    assert store.load(tmp_path / "trained.safetensors") == "trained"
    assert_same_adapter(store["trained"], small_device_adapter("trained", 5))
    # Whatever else is loaded.
    store.put("other", replace(small_device_adapter("other", 1), heads=()))
    store.load(tmp_path / "trained.safetensors", "again")
    assert list(store["again"].tasks) == ["colour", "spam", "trivia"]


def test_an_adapter_from_memory_may_bring_heads_of_its_own(store: AdapterStore) -> None:
    wide = random_head("spam", tuple("abcdefg"), SMALL.contract, hidden=SMALL_HIDDEN)
    new = random_head("new", ("x",), SMALL.contract, hidden=SMALL_HIDDEN)
    store.add("mine", small_adapter(5), [wide, new])
    assert {name: len(head.weights) for name, head in store["mine"].tasks.items()} == {
        "colour": 3,
        "spam": 7,
        "trivia": 1,
        "new": 1,
    }
    np.testing.assert_array_equal(store["mine"].tasks["spam"].weights[:, :-1], wide.weight)
    # Those of the default adapter are as they were.
    assert_same_adapter(store[DEFAULT], small_device_adapter(DEFAULT, 0))


def test_what_is_refused_changes_nothing(store: AdapterStore, tmp_path: Path) -> None:
    before = store.snapshot()
    foreign = AdapterFile(small_adapter(1).state, replace(SMALL, base="another"), "base")
    save_adapter(tmp_path / "foreign.safetensors", foreign)
    save_device_adapter(tmp_path / "int8.safetensors", small_device_adapter("x", 1, "int8"))
    save_device_adapter(tmp_path / "torn.safetensors", small_device_adapter("x", 1))
    torn = (tmp_path / "torn.safetensors").read_bytes()
    (tmp_path / "torn.safetensors").write_bytes(torn[:-3])
    save_head(tmp_path / "head.safetensors", small_heads()[0])
    (tmp_path / "text.safetensors").write_text("hello")
    for name, error, message in (
        ("foreign", ContractError, "another base, or with other settings"),
        ("int8", ContractError, "was encoded for slot"),
        ("torn", AdapterError, r"torn\.safetensors"),
        ("head", AdapterError, r"head\.safetensors"),
        ("text", AdapterError, r"text\.safetensors"),
        ("gone", AdapterError, "does not exist"),
    ):
        with pytest.raises(error, match=message):
            store.load(tmp_path / f"{name}.safetensors", DEFAULT)
    with pytest.raises(ContractError, match="width 5"):
        store.add(DEFAULT, small_adapter(1), [random_head("wide", (), SMALL.contract, hidden=5)])
    with pytest.raises(AdapterError, match="the slot takes"):
        store.put(DEFAULT, replace(small_device_adapter("x", 1), arrays={"slot": np.zeros(3, np.float32)}))
    assert store.snapshot() == before


def test_a_thousand_adapters_are_held_at_once(store: AdapterStore, tmp_path: Path) -> None:
    adapters = [small_device_adapter(str(seed), seed) for seed in range(10)]
    for number, adapter in enumerate(adapters):
        save_device_adapter(tmp_path / f"{number}.safetensors", adapter)
    for number in range(1000):
        store.load(tmp_path / f"{number % 10}.safetensors", str(number))
    assert len(store.snapshot()) == 1001
    for number in range(1000):
        np.testing.assert_array_equal(store[str(number)].arrays["slot"], adapters[number % 10].arrays["slot"])


def test_readers_see_whole_adapters_while_others_write(store: AdapterStore) -> None:
    adapters = {seed: small_device_adapter("x", seed) for seed in range(4)}
    slots = {adapters[seed].arrays["slot"].tobytes() for seed in adapters}
    turns = iter(range(10**9))

    def change() -> None:
        turn = next(turns)
        store.put("shared", adapters[turn % 4])
        store.put(str(turn % 50), adapters[turn % 4])
        if turn % 3 == 0:
            store.drop(str(turn % 50))

    def look() -> None:
        assert store["shared"].arrays["slot"].tobytes() in slots
        assert len(list(store.snapshot())) >= 2
        with pytest.raises(TaskError):
            store["never"]

    store.put("shared", adapters[0])
    with meanwhile(change, look, look):
        for _ in range(300):
            assert_same_adapter(store[DEFAULT], small_device_adapter(DEFAULT, 0))


def test_dropping_one_name_twice_at_once_succeeds_once(store: AdapterStore) -> None:
    adapter = small_device_adapter("x", 1)
    for _ in range(100):
        store.put("mine", adapter)
        missing: list[TaskError] = []

        def drop() -> None:
            try:
                store.drop("mine")
            except TaskError as error:
                missing.append(error)  # noqa: B023 - it runs in this turn

        threads = [threading.Thread(target=drop) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(missing) == 2


def test_a_file_may_be_replaced_while_it_is_loaded(store: AdapterStore, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    adapters = [small_device_adapter("x", seed) for seed in (1, 2)]
    save_device_adapter(path, adapters[0])

    def write() -> None:
        for adapter in adapters:
            save_device_adapter(path, adapter)

    found = []
    with meanwhile(write):
        for _ in range(200):
            store.load(path, "mine")
            found.append([np.array_equal(store["mine"].arrays["slot"], a.arrays["slot"]) for a in adapters])
    assert all(sum(same) == 1 for same in found)


def test_one_adapter_is_fed_once_and_several_one_per_row() -> None:
    for encoding in ENCODINGS:
        first, second = (small_device_adapter("x", seed, encoding) for seed in (1, 2))
        alone = slot_feeds([first, first, first])
        rows = slot_feeds([first, second, first])
        for name, (size, dtype) in small_slot(encoding).arrays.items():
            assert (alone[name].shape, alone[name].dtype) == ((1, size), dtype)
            assert (rows[name].shape, rows[name].dtype) == ((3, size), dtype)
            np.testing.assert_array_equal(alone[name][0], first.arrays[name])
            np.testing.assert_array_equal(
                rows[name], [first.arrays[name], second.arrays[name], first.arrays[name]]
            )
