"""Small adapters to publish, publishers with keys, and stores."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedkron.audit.keys import SigningKey
from fedkron.exchange import AdapterFile, HeadFile, save_adapter, save_head
from fedkron.layout import AdapterLayout, ModuleLayout, TensorLayout
from fedkron.registry.material import Choice, material
from fedkron.registry.publish import Conditions, Prepared, prepare, publish
from fedkron.registry.signature import Signed
from fedkron.registry.storage import Storage

HIDDEN = 8
LAYOUT = AdapterLayout(
    "ab" * 32,
    (
        ModuleLayout(
            "dense",
            "kron_lora",
            4.0,
            (8, 8),
            (TensorLayout("A", (2, 2)), TensorLayout("B1", (4, 2)), TensorLayout("B2", (2, 4))),
        ),
        ModuleLayout(
            "second", "lora", 0.5, (8, 6), (TensorLayout("lora_A", (2, 6)), TensorLayout("lora_B", (8, 2)))
        ),
    ),
)
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
CONDITIONS = Conditions("film", "Apache-2.0")


def adapter(seed: int = 0, base_name: str = "org/tiny") -> AdapterFile:
    """Random numbers in the one layout."""
    rng = np.random.default_rng(seed)
    state = {t.name: rng.normal(0, 0.3, t.shape).astype(np.float32) for t in LAYOUT.tensors}
    return AdapterFile(state, LAYOUT, base_name, lineage=(f"seed {seed}",))


def head(task: str = "film") -> HeadFile:
    rng = np.random.default_rng(len(task))
    weight = rng.normal(0, 1, (2, HIDDEN)).astype(np.float32)
    return HeadFile(weight, np.zeros(2, np.float32), task, "classification", ("bad", "good"), LAYOUT.contract)


def written(folder: Path, seed: int = 0) -> tuple[Path, Path]:
    """An adapter file and a head file."""
    folder.mkdir(parents=True, exist_ok=True)
    save_adapter(folder / "adapter.safetensors", adapter(seed))
    save_head(folder / "head.safetensors", head())
    return folder / "adapter.safetensors", folder / "head.safetensors"


def prepared(folder: Path, seed: int = 0, *, key: SigningKey = KEY, name: str = "film") -> Prepared:
    """An adapter with one head, ready to be published."""
    file, head_file = written(folder, seed)
    found = material(file, Choice(heads=[head_file]))
    return prepare(found, key, replace(CONDITIONS, name=name))


def published(
    storage: Storage, folder: Path, seed: int = 0, *, key: SigningKey = KEY, name: str = "film"
) -> Signed:
    return publish(storage, prepared(folder, seed, key=key, name=name), key)


def public(key: SigningKey) -> str:
    return key.public_key().public_bytes_raw().hex()


def resigned(signed: bytes, change: Callable[[dict[str, Any]], object], key: SigningKey = KEY) -> bytes:
    """The manifest with a change, signed as docs/formats.md says, and not as the code does."""
    content = json.loads(signed)
    del content["signature"]
    change(content)

    def canonical() -> bytes:
        return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

    content["signature"] = key.sign(b"fedkron publication 1\n" + canonical()).hex()
    return canonical()


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
