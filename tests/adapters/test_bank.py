"""Several adapters on one base, against one model for each adapter."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from adapter_cases import SPECS, randomise
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from fedkron.adapters import (
    AdapterBank,
    AdapterSpec,
    adapted_layers,
    adapter_layout,
    adapter_state,
    attach,
    load_adapter_state,
)
from fedkron.errors import AdapterError
from fedkron.layout import AdapterLayout, State, TensorLayout

IDS = torch.tensor([[1, 5, 9, 2], [3, 3, 8, 2], [7, 1, 4, 2], [6, 2, 2, 2], [9, 9, 1, 2]])
ROWS = ["lora", "kron_lora", None, "lora", "queries only"]


def base() -> BertModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=12,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertModel(config, add_pooling_layer=False).eval()


def adapted(spec: AdapterSpec, seed: int) -> BertModel:
    """A model of its own for one adapter: what the bank has to agree with."""
    model = attach(base(), spec)
    randomise(model, seed)
    return model


MODELS = {
    **{kind: adapted(spec, seed) for seed, (kind, spec) in enumerate(SPECS.items())},
    "queries only": adapted(replace(SPECS["kron_lora"], targets=("*.query",)), 9),
}


def parts(model: nn.Module) -> tuple[AdapterLayout, State]:
    return adapter_layout(model, ""), adapter_state(model)


def output(model: nn.Module, ids: Tensor = IDS) -> Tensor:
    return model(ids).last_hidden_state


@pytest.fixture
def bank() -> AdapterBank:
    bank = AdapterBank(base())
    for name, other in MODELS.items():
        bank.add(name, *parts(other))
    return bank


def test_the_active_adapter_computes_what_a_model_of_its_own_computes(bank: AdapterBank) -> None:
    assert bank.names == tuple(MODELS)
    assert bank.active is None
    bare = output(base())
    assert torch.equal(output(bank.model), bare)
    for name, model in (*MODELS.items(), *reversed(MODELS.items())):
        bank.activate(name)
        assert bank.active == name
        assert torch.equal(output(bank.model), output(model))
        assert parts(bank.model)[0] == parts(model)[0]
    bank.activate(None)
    assert torch.equal(output(bank.model), bare)
    assert not list(adapted_layers(bank.model))


def test_each_row_is_computed_with_its_own_adapter(bank: AdapterBank) -> None:
    bank.activate("moka")
    with bank.rows(ROWS):
        rows = output(bank.model)
    for i, name in enumerate(ROWS):
        alone = output(base() if name is None else MODELS[name], IDS[i : i + 1])
        torch.testing.assert_close(rows[i : i + 1], alone, rtol=1e-5, atol=1e-5)
    assert bank.active == "moka"
    assert torch.equal(output(bank.model), output(MODELS["moka"]))


def test_gradients_reach_each_adapter_as_if_it_had_been_alone(bank: AdapterBank) -> None:
    with bank.rows(ROWS):
        output(bank.model).square().sum().backward()
    for name in ("lora", "kron_lora", "queries only"):
        model = copy.deepcopy(MODELS[name])
        own = IDS[[i for i, n in enumerate(ROWS) if n == name]]
        output(model, own).square().sum().backward()
        bank.activate(name)
        for path, layer in adapted_layers(bank.model):
            for factor, expected in model.get_submodule(path).factors().items():
                torch.testing.assert_close(layer.factors()[factor].grad, expected.grad, rtol=1e-4, atol=1e-4)


def test_training_the_active_adapter_leaves_the_others_and_the_base_alone(bank: AdapterBank) -> None:
    bank.activate("lora")
    trained = [p for p in bank.model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    output(bank.model).square().sum().backward()
    optimizer.step()
    assert not torch.equal(output(bank.model), output(MODELS["lora"]))
    for name in (None, "kron_lora"):
        bank.activate(name)
        assert torch.equal(output(bank.model), output(MODELS[name] if name else base()))


def test_rows_work_under_autocast(bank: AdapterBank) -> None:
    with bank.rows(ROWS), torch.autocast("cpu", torch.bfloat16):
        rows = output(bank.model)
    for i, name in enumerate(ROWS):
        with torch.autocast("cpu", torch.bfloat16):
            alone = output(base() if name is None else MODELS[name], IDS[i : i + 1])
        torch.testing.assert_close(rows[i : i + 1], alone, rtol=0.1, atol=0.1)


def test_an_adapter_can_be_replaced_and_removed(bank: AdapterBank) -> None:
    bank.activate("lora")
    bank.add("lora", *parts(MODELS["krona"]))
    assert torch.equal(output(bank.model), output(MODELS["krona"]))
    bank.remove("lora")
    assert bank.active is None
    assert "lora" not in bank.names
    with pytest.raises(AdapterError, match="no adapter 'lora' in the bank: it has kron_lora, krona"):
        bank.activate("lora")


def test_a_head_beside_the_model_does_not_disturb(bank: AdapterBank) -> None:
    layout, state = parts(MODELS["lora"])
    shared = layout.with_head(3, 16)
    bank.add("with head", shared, state | {"head.weight": np.zeros((3, 16)), "head.bias": np.zeros(3)})
    bank.activate("with head")
    assert torch.equal(output(bank.model), output(MODELS["lora"]))


def test_what_is_wrong_is_refused_and_the_bank_stays_as_it_was(bank: AdapterBank) -> None:
    layout, state = parts(MODELS["lora"])
    bank.activate("kron_lora")
    before = output(bank.model)
    name = next(iter(state))
    dense = replace(layout, dense=(TensorLayout("embeddings.LayerNorm.bias", (16,)),))
    for wrong_layout, wrong_state, message in (
        (layout, {key: value for key, value in state.items() if key != name}, f"{name}.* is missing"),
        (layout, state | {name: np.full_like(state[name], np.nan)}, "not finite"),
        (dense, state, "trains 'embeddings.LayerNorm.bias' in full"),
        (replace(layout, modules=(replace(layout.modules[0], path="left"),)), state, "layer 'left'"),
    ):
        with pytest.raises(AdapterError, match=message):
            bank.add("wrong", wrong_layout, wrong_state)
        assert bank.active == "kron_lora"
        assert bank.names == tuple(MODELS)
        assert torch.equal(output(bank.model), before)
    with pytest.raises(AdapterError, match="no adapter 'wrong' in the bank"), bank.rows(["lora", "wrong"]):
        pass
    with bank.rows(["lora", "lora"]), pytest.raises(AdapterError, match=r"got 5 rows.*named for 2"):
        output(bank.model)
    assert torch.equal(output(bank.model), before)


def test_a_model_with_an_adapter_is_refused() -> None:
    with pytest.raises(AdapterError, match="has an adapter already"):
        AdapterBank(adapted(SPECS["lora"], 0))


def test_a_state_saved_from_the_bank_loads_elsewhere(bank: AdapterBank) -> None:
    bank.activate("adakron")
    other = attach(base(), SPECS["adakron"])
    load_adapter_state(other, adapter_state(bank.model))
    assert torch.equal(output(other), output(MODELS["adakron"]))
