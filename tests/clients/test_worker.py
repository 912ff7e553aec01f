"""The model in a client process: loaded once, the base shared by what trains and what does not."""

from pathlib import Path

import torch

from clients.worker import load_worker
from fedkron.adapters import adapted_layers
from fedkron.base import load_base
from fedkron.settings import AdapterSettings

ADAPTER = AdapterSettings(rank=2, d_a2=4)


def test_worker_is_loaded_once_for_the_same_settings(tiny_bert: Path) -> None:
    first = load_worker(str(tiny_bert), ADAPTER, "cpu", "right")
    assert load_worker(str(tiny_bert), ADAPTER, "cpu", "right") is first
    assert load_worker(str(tiny_bert), AdapterSettings(rank=3, d_a2=4), "cpu", "right") is not first


def test_base_with_and_without_adapter_use_the_same_weights(tiny_bert: Path) -> None:
    worker = load_worker(str(tiny_bert), ADAPTER, "cpu", "right")
    bare = {tensor.data_ptr() for tensor in (*worker.bare.parameters(), *worker.bare.buffers())}
    factors = {f.data_ptr() for _, layer in adapted_layers(worker.adapted) for f in layer.factors().values()}
    adapted = {tensor.data_ptr() for tensor in (*worker.adapted.parameters(), *worker.adapted.buffers())}
    assert factors
    assert adapted - factors == bare
    assert not any(parameter.requires_grad for parameter in worker.bare.parameters())


def test_adapter_does_not_show_in_the_bare_base(tiny_bert: Path) -> None:
    worker = load_worker(str(tiny_bert), ADAPTER, "cpu", "right")
    with torch.no_grad():
        for _, layer in adapted_layers(worker.adapted):
            for factor in layer.factors().values():
                factor.add_(0.3)
        ids = torch.arange(4, 12)[None]
        original = load_base(str(tiny_bert)).backbone(ids).last_hidden_state
        assert torch.equal(worker.bare(ids).last_hidden_state, original)
        assert not torch.allclose(worker.adapted.eval()(ids).last_hidden_state, original, atol=1e-2)


def test_worker_knows_fingerprint_width_and_padding_of_its_base(tiny_bert: Path) -> None:
    worker = load_worker(str(tiny_bert), ADAPTER, "cpu", "right")
    assert worker.fingerprint == load_base(str(tiny_bert)).fingerprint
    assert (worker.hidden_size, worker.pad_id) == (32, 0)
    assert worker.task_model(3).head.weight.shape == (3, 32)
