"""More adapters in a bundle that is there already."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from edge_cases import SPECS, Written, another_adapter, random_head, with_adapter

from fedkron.edge.bundle_adapters import add_to_bundle
from fedkron.edge.manifest import read_manifest, verify_files
from fedkron.edge.runtime import Bundle
from fedkron.errors import BundleError, ContractError, FedKronError
from fedkron.exchange import AdapterFile, HeadFile

TEXTS = ["who wrote the play", "red cat"]


@pytest.fixture
def copied(bundle: Written, tmp_path: Path) -> Path:
    return shutil.copytree(bundle.folder, tmp_path / "copy")


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def check_whole(folder: Path) -> None:
    manifest = read_manifest(folder)
    verify_files(folder, manifest)
    assert contents(folder).keys() == {*manifest.files, "manifest.json"}


def test_an_added_adapter_answers_beside_that_of_the_export(bundle: Written, copied: Path) -> None:
    before = contents(copied)
    other = another_adapter(bundle.adapter, seed=4)
    wide = random_head("spam", ("good", "odd", "bad"), bundle.adapter.layout.contract)
    entry = add_to_bundle(copied, "tenant 7", other, [wide])
    assert (entry.name, list(entry.onnx_adapters)) == ("tenant 7", ["spam"])
    check_whole(copied)
    after = contents(copied)
    assert {name for name in before if before[name] != after[name]} == {"manifest.json"}
    opened, direct = Bundle.open(copied, threads=1), Bundle.open(bundle.folder, threads=1)
    direct.add("tenant 7", other, [wide])
    assert list(opened.adapters) == ["default", "tenant 7"]
    assert list(opened.tasks("tenant 7")) == ["spam"]
    for name in opened.adapters:
        np.testing.assert_array_equal(
            opened.logits(TEXTS, "spam", adapter=name), direct.logits(TEXTS, "spam", adapter=name)
        )
    parameters = onnxruntime.AdapterFormat.read_adapter(
        str(copied / entry.onnx_adapters["spam"])
    ).get_parameters()
    np.testing.assert_array_equal(parameters["slot"].numpy()[0], opened.adapters["tenant 7"].arrays["slot"])


def test_the_same_additions_give_the_same_bytes(bundle: Written, copied: Path, tmp_path: Path) -> None:
    again = shutil.copytree(bundle.folder, tmp_path / "again")
    for folder in copied, again:
        add_to_bundle(folder, "one", another_adapter(bundle.adapter, seed=4), [bundle.heads["spam"]])
    assert contents(copied) == contents(again)


def test_an_added_adapter_is_replaced_with_its_tasks(bundle: Written, copied: Path) -> None:
    add_to_bundle(copied, "one", another_adapter(bundle.adapter, seed=4), list(bundle.heads.values()))
    other = another_adapter(bundle.adapter, seed=5)
    add_to_bundle(copied, "one", other, [bundle.heads["spam"]])
    check_whole(copied)
    opened = Bundle.open(copied, threads=1)
    assert list(opened.tasks("one")) == ["spam"]
    direct = Bundle.open(bundle.folder, threads=1)
    direct.add("one", other)
    np.testing.assert_array_equal(
        opened.logits(TEXTS, "spam", adapter="one"), direct.logits(TEXTS, "spam", adapter="one")
    )


def test_what_does_not_belong_there_is_refused_and_nothing_changes(bundle: Written, copied: Path) -> None:
    spam = bundle.heads["spam"]
    good = another_adapter(bundle.adapter, seed=4)
    foreign = with_adapter(bundle.base.backbone, SPECS["lora"], bundle.base.fingerprint, seed=1)[1]
    refused: list[tuple[str, AdapterFile, list[HeadFile], type[FedKronError], str]] = [
        ("default", good, [spam], BundleError, "is that of the export: choose another name"),
        ("two", good, [], BundleError, "there is no head"),
        ("two", good, [spam, spam], BundleError, "two heads are for task 'spam'"),
        ("two", good, [replace(spam, task=t) for t in ("a:b", "a/b")], BundleError, "share a file name"),
        ("two", foreign, [replace(spam, contract=foreign.layout.contract)], ContractError, "another base"),
        ("two", good, [replace(spam, contract="0" * 64)], ContractError, "head of task 'spam'"),
    ]
    before = contents(copied)
    for name, adapter, heads, error, message in refused:
        with pytest.raises(error, match=message):
            add_to_bundle(copied, name, adapter, heads)
        assert contents(copied) == before
    (copied / "base.bin").write_bytes(b"damaged")
    with pytest.raises(BundleError, match=r"base\.bin is not what was exported"):
        add_to_bundle(copied, "two", good, [spam])


def test_names_that_would_make_the_same_file_name_get_files_of_their_own(
    bundle: Written, copied: Path
) -> None:
    adapters = {
        name: another_adapter(bundle.adapter, seed) for seed, name in enumerate(("o-n-e", "o/n:e"), 4)
    }
    for name, adapter in adapters.items():
        add_to_bundle(copied, name, adapter, [bundle.heads["spam"]])
    check_whole(copied)
    opened = Bundle.open(copied, threads=1)
    answers = [opened.logits(TEXTS, "spam", adapter=name) for name in adapters]
    assert np.abs(answers[0] - answers[1]).max() > 1e-2
