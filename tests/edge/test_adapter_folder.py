"""A folder of adapters that is followed: what is written there is what answers."""

import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from edge_cases import SPECS, Written, with_adapter

from fedkron.edge.adapter_folder import AdapterFolder
from fedkron.edge.device_adapter import device_adapter, save_device_adapter
from fedkron.edge.manifest import read_manifest
from fedkron.edge.runtime import Bundle
from fedkron.errors import BundleError

TEXTS = ["who wrote the play", "red cat blue dog one two"]


@pytest.fixture(scope="module")
def files(bundle: Written, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two device adapters of the same size."""
    manifest = read_manifest(bundle.folder)
    paths = []
    for seed in 2, 3:
        _, adapter = with_adapter(
            bundle.base.backbone, SPECS["kron_lora"], bundle.base.fingerprint, seed=seed
        )
        heads = list(bundle.heads.values())
        paths.append(tmp_path_factory.mktemp("adapters") / "a.safetensors")
        save_device_adapter(
            paths[-1], device_adapter("a", adapter, heads, manifest.slot, manifest.hidden_size)
        )
    return paths


@pytest.fixture
def opened(bundle: Written) -> Bundle:
    return Bundle.open(bundle.folder, threads=1)


def put(source: Path, target: Path) -> None:
    """Replace a file as it should be done: by renaming."""
    shutil.copy(source, target.with_name(f".{target.name}.new"))
    target.with_name(f".{target.name}.new").replace(target)


def expected(bundle: Written, file: Path) -> np.ndarray:
    truth = Bundle.open(bundle.folder, threads=1)
    truth.load(file, "truth")
    return truth.logits(TEXTS, "spam", adapter="truth")


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


def test_files_are_loaded_by_name_and_followed(
    bundle: Written, opened: Bundle, files: list[Path], tmp_path: Path
) -> None:
    put(files[0], tmp_path / "tenant.safetensors")
    (tmp_path / "README.txt").write_text("no adapter")
    folder = AdapterFolder(tmp_path, opened)
    folder.refresh()
    assert list(opened.adapters) == ["default", "tenant"]
    np.testing.assert_array_equal(opened.logits(TEXTS, "spam", adapter="tenant"), expected(bundle, files[0]))
    put(files[1], tmp_path / "tenant.safetensors")
    put(files[0], tmp_path / "more.safetensors")
    folder.refresh()
    assert set(opened.adapters) == {"default", "tenant", "more"}
    np.testing.assert_array_equal(opened.logits(TEXTS, "spam", adapter="tenant"), expected(bundle, files[1]))
    (tmp_path / "tenant.safetensors").unlink()
    folder.refresh()
    assert set(opened.adapters) == {"default", "more"}


def test_a_replacement_of_the_same_size_and_time_is_noticed(
    bundle: Written, opened: Bundle, files: list[Path], tmp_path: Path
) -> None:
    target = tmp_path / "tenant.safetensors"
    put(files[0], target)
    os.utime(target, ns=(10**18, 10**18))
    folder = AdapterFolder(tmp_path, opened)
    folder.refresh()
    shutil.copy(files[1], tmp_path / "next")
    os.utime(tmp_path / "next", ns=(10**18, 10**18))
    assert (tmp_path / "next").stat().st_size == target.stat().st_size
    (tmp_path / "next").replace(target)
    folder.refresh()
    np.testing.assert_array_equal(opened.logits(TEXTS, "spam", adapter="tenant"), expected(bundle, files[1]))


def test_an_adapter_that_did_not_change_is_not_loaded_again(
    opened: Bundle, files: list[Path], tmp_path: Path
) -> None:
    put(files[0], tmp_path / "tenant.safetensors")
    folder = AdapterFolder(tmp_path, opened)
    folder.refresh()
    before = opened.adapters["tenant"]
    folder.refresh()
    assert opened.adapters["tenant"] is before


def test_a_broken_file_keeps_the_old_adapter_and_is_logged_once(
    opened: Bundle, files: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    target = tmp_path / "tenant.safetensors"
    put(files[0], target)
    folder = AdapterFolder(tmp_path, opened)
    folder.refresh()
    before = opened.adapters["tenant"]
    target.write_bytes(files[1].read_bytes()[:-9])
    with caplog.at_level(logging.WARNING):
        folder.refresh()
        folder.refresh()
    assert opened.adapters["tenant"] is before
    assert len(caplog.records) == 1
    assert "'tenant'" in caplog.text
    # The rest arrives.
    target.write_bytes(files[1].read_bytes())
    folder.refresh()
    assert opened.adapters["tenant"] is not before


def test_the_bundles_own_adapter_survives_a_broken_file_of_its_name(opened: Bundle, tmp_path: Path) -> None:
    (tmp_path / "default.safetensors").write_bytes(b"broken")
    folder = AdapterFolder(tmp_path, opened)
    before = opened.adapters["default"]
    folder.refresh()
    (tmp_path / "default.safetensors").unlink()
    folder.refresh()
    assert opened.adapters["default"] is before


def test_a_folder_that_cannot_be_read_keeps_all_adapters(
    opened: Bundle, files: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    put(files[0], mounted / "tenant.safetensors")
    folder = AdapterFolder(mounted, opened)
    folder.refresh()
    mounted.rename(tmp_path / "away")
    folder.refresh()
    assert "all adapters stay" in caplog.text
    assert set(opened.adapters) == {"default", "tenant"}


def test_a_folder_must_be_there_at_the_start(opened: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a folder"):
        AdapterFolder(tmp_path / "nowhere", opened)


def test_changes_are_taken_up_within_a_second(opened: Bundle, files: list[Path], tmp_path: Path) -> None:
    put(files[0], tmp_path / "a.safetensors")
    with AdapterFolder(tmp_path, opened).followed():
        assert set(opened.adapters) == {"default", "a"}
        put(files[1], tmp_path / "b.safetensors")
        # A second, and time for a busy machine.
        assert within(10, lambda: "b" in opened.adapters)
    put(files[1], tmp_path / "c.safetensors")
    time.sleep(0.7)
    assert "c" not in opened.adapters
