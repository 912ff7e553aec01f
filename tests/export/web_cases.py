"""Bundles that a browser can ask, served."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from playwright.sync_api import Page, expect

from export.web.server import make_server
from fedkron.adapters import AdapterSpec, adapter_layout, adapter_state, attach
from fedkron.base import Base, load_base
from fedkron.edge.bundle import write_bundle
from fedkron.edge.device_adapter import device_adapter, save_device_adapter
from fedkron.edge.manifest import read_manifest, sha256
from fedkron.exchange import AdapterFile, HeadFile

ENCODINGS = ["fp32", "fp16", "int8", "int4"]
SECOND = "adapters/second.safetensors"

expect.set_options(timeout=30_000)


@contextmanager
def served(bundle: Path) -> Iterator[str]:
    """The page's address, while it is served."""
    with make_server(bundle) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def ready(page: Page, address: str) -> Page:
    """The page, with the bundle opened."""
    page.goto(address)
    page.locator("#loading").wait_for(state="hidden")
    return page


def write_tiny_bundle(folder: Path, base: Base, encoding: str) -> Path:
    """A bundle with adapters `default` and `second`, which have other heads; texts are cut to 12 tokens."""
    adapter = random_adapter(base, seed=1)
    contract = adapter.layout.contract
    heads = random_heads(contract, seed=1)
    write_bundle(
        folder, base, adapter, heads, max_length=12, encoding=encoding, merged=False, report=lambda _: None
    )
    save_second_adapter(folder / SECOND, folder, base, seed=2)
    content = json.loads((folder / "manifest.json").read_text())
    content["adapters"].append({"name": "second", "file": SECOND, "onnx_adapters": {}})
    content["files"][SECOND] = sha256(folder / SECOND)
    (folder / "manifest.json").write_text(json.dumps(content))
    return folder


def save_second_adapter(path: Path, bundle: Path, base: Base, seed: int) -> None:
    """Save another adapter for a bundle."""
    adapter = random_adapter(base, seed=seed)
    heads = random_heads(adapter.layout.contract, seed=seed)
    slot = read_manifest(bundle).slot
    save_device_adapter(path, device_adapter("second", adapter, heads, slot, base.hidden_size))


def random_adapter(base: Base, seed: int) -> AdapterFile:
    """An adapter whose factors are not zero."""
    model = attach(load_base(base.name).backbone, AdapterSpec("kron_lora", rank=3, alpha=7.0, d_a2=4))
    layout = adapter_layout(model, base.fingerprint)
    rng = np.random.default_rng(seed)
    state = {
        name: rng.normal(0, 0.3, tensor.shape).astype(np.float32)
        for name, tensor in adapter_state(model).items()
    }
    return AdapterFile(state, layout, base.name)


def random_heads(contract: str, seed: int) -> list[HeadFile]:
    """Two tasks of labels, the second without names for them, and one of choices."""
    rng = np.random.default_rng(seed)
    # Weak, so that no probability is near 0 or 1.
    return [
        HeadFile(
            rng.normal(0, 0.15, (outputs, 32)).astype(np.float32),
            rng.standard_normal(outputs).astype(np.float32),
            task,
            kind,
            labels,
            contract,
        )
        for task, kind, labels, outputs in (
            ("colour/of: it", "classification", ("red", "green", "bleu foncé"), 3),
            ("many", "classification", (), 14),
            ("trivia", "multiple_choice", (), 1),
        )
    ]
