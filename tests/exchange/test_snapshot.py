"""A snapshot is read back as it was written, or not at all."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors import safe_open

from fedkron.errors import SnapshotError
from fedkron.exchange import Tree, load_snapshot, save_snapshot

patient = settings(deadline=None, max_examples=60)
arrays = hnp.arrays(
    st.sampled_from([np.float32, np.float64, np.float16, np.uint8, np.int64]),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)
leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.binary()
    | arrays
)
trees = st.dictionaries(
    st.text(),
    st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8),
    max_size=4,
)


def same(a: Tree, b: Tree) -> bool:
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@patient
@given(trees)
def test_it_is_read_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, tree: Tree) -> None:
    folder = tmp_path_factory.mktemp("snapshot")
    digest = save_snapshot(folder / "one", tree)
    assert same(load_snapshot(folder / "one"), tree)
    assert save_snapshot(folder / "two", tree) == digest
    assert (folder / "one").read_bytes() == (folder / "two").read_bytes()


EXAMPLE = {"round": 3, "vector": np.arange(5, dtype=np.float32), "digest": b"\x01\x02", "names": ["a", None]}


@pytest.mark.parametrize("at", range(0, 600, 3))
def test_no_flipped_byte_goes_unnoticed(tmp_path: Path, at: int) -> None:
    path = tmp_path / "snapshot"
    save_snapshot(path, EXAMPLE)
    blob = bytearray(path.read_bytes())
    at %= len(blob)
    blob[at] ^= 0x15
    path.write_bytes(blob)
    with pytest.raises(SnapshotError, match="snapshot"):
        load_snapshot(path)


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"a": {"b": [1.0, float("nan")]}}, r"\.a\.b\[1\] is nan"),
        ({"a": {1: 2}}, r"\.a is dict: a snapshot cannot hold that"),
        ({"a": np.array(["text"])}, r"\.a is ndarray"),
        ({"a": {2, 3}}, r"\.a is set"),
    ],
)
def test_what_it_cannot_hold_is_refused_and_nothing_is_written(tmp_path: Path, tree: Tree, said: str) -> None:
    path = tmp_path / "snapshot"
    save_snapshot(path, EXAMPLE)
    before = path.read_bytes()
    with pytest.raises(SnapshotError, match=said):
        save_snapshot(path, tree)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["snapshot"]


def test_other_files_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(SnapshotError, match=r"no snapshot at .*missing"):
        load_snapshot(tmp_path / "missing")
    path = tmp_path / "snapshot"
    save_snapshot(path, EXAMPLE)
    with safe_open(path, "numpy") as file:
        metadata = json.loads(file.metadata()["fedkron"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    from safetensors.numpy import save_file

    for change, said in (({"version": 2}, "version 2, known here is 1"), ({"format": "x"}, "format is 'x'")):
        save_file(tensors, path, {"fedkron": json.dumps(metadata | change)})
        with pytest.raises(SnapshotError, match=said):
            load_snapshot(path)
