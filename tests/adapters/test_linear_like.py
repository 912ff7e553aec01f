"""Layers that only act like an `nn.Linear`: GPT-2's Conv1D, bitsandbytes, and those of torch.ao."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import bitsandbytes as bnb
import pytest
import torch
from adapter_cases import dense_delta
from ecosystem_models import adapted, gradients, the_layer, trained
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from fedkron.adapters import ADAPTER_KINDS, AdaptedLinear, adapted_layers, detach, merge
from fedkron.errors import AdapterError

each_kind = pytest.mark.parametrize("kind", ADAPTER_KINDS)
TOKENS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


def written_out(layer: AdaptedLinear) -> Tensor:
    """ΔW as the papers write it, in float64."""
    return dense_delta(layer.kind, layer.factors(), layer.scale).detach()


# GPT-2


def gpt2() -> GPT2LMHeadModel:
    """Its `lm_head` and its embedding are one tensor; all other linear layers are Conv1D."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=32, n_positions=8, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    return GPT2LMHeadModel(config).eval()


@each_kind
def test_every_conv1d_of_gpt2_is_wrapped_and_computes_what_its_transposed_weight_would(kind: str) -> None:
    model = adapted(gpt2(), kind)
    layers = dict(adapted_layers(model))
    names = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert list(layers) == [*(f"transformer.h.{n}.{name}" for n in (0, 1) for name in names), "lm_head"]
    for layer in layers.values():
        delta = written_out(layer)
        assert (layer.out_features, layer.in_features) == delta.shape
        torch.testing.assert_close(layer.delta().double(), delta, rtol=1e-5, atol=1e-5)
        x = torch.randn(2, 3, layer.in_features)
        weight = layer.base.weight.double()
        dense = (weight.T if isinstance(layer.base, Conv1D) else weight) + delta
        bias = 0 if layer.base.bias is None else layer.base.bias
        torch.testing.assert_close(layer(x).double(), x.double() @ dense.T + bias, rtol=1e-4, atol=1e-4)
    assert sum(isinstance(layer.base, Conv1D) for layer in layers.values()) == 8


@each_kind
def test_a_merged_gpt2_gives_the_same_logits_also_when_it_is_saved_and_loaded(
    kind: str, tmp_path: Path
) -> None:
    model = adapted(gpt2(), kind)
    unmerged = model(TOKENS).logits
    merge(model)
    assert not list(adapted_layers(model))
    torch.testing.assert_close(model(TOKENS).logits, unmerged, rtol=1e-4, atol=1e-4)
    model.save_pretrained(tmp_path)
    loaded = GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(TOKENS).logits, model(TOKENS).logits)
    assert not torch.equal(loaded.lm_head.weight, loaded.transformer.wte.weight)


def test_a_wrapped_model_is_saved_and_loads_as_its_bare_base_or_as_it_was(tmp_path: Path) -> None:
    bare = gpt2()(TOKENS).logits
    model = adapted(gpt2(), "kron_lora")
    assert not torch.allclose(model(TOKENS).logits, bare, atol=0.01)
    model.save_pretrained(tmp_path)
    assert torch.equal(GPT2LMHeadModel.from_pretrained(tmp_path).eval()(TOKENS).logits, bare)
    other = adapted(gpt2(), "kron_lora")
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(TOKENS).logits, model(TOKENS).logits)


def test_tying_weights_again_reaches_the_wrapped_layer() -> None:
    model = adapted(gpt2(), "kron_lora")
    before = model(TOKENS).logits
    model.tie_weights()
    assert model.lm_head.base.weight is model.lm_head.weight is model.transformer.wte.weight
    assert torch.equal(model(TOKENS).logits, before)


@each_kind
def test_shapes_can_be_followed_on_the_meta_device(kind: str) -> None:
    model = adapted(gpt2(), kind).to("meta")
    assert model(TOKENS.to("meta")).logits.shape == (*TOKENS.shape, 32)


@each_kind
def test_unmerging_gpt2_gives_back_the_very_weights_and_ties_them_again(kind: str) -> None:
    bare = gpt2()
    weights = dict(bare.named_parameters(remove_duplicate=False))
    values = {name: weight.detach().clone() for name, weight in weights.items()}
    model = adapted(bare, kind)
    layers, unmerged = dict(adapted_layers(model)), model(TOKENS).logits
    merged = merge(model)
    assert model.lm_head.weight is not model.transformer.wte.weight
    assert torch.equal(model.transformer.wte.weight, values["transformer.wte.weight"])
    merged.unmerge()
    assert dict(adapted_layers(model)) == layers
    assert torch.equal(model(TOKENS).logits, unmerged)
    assert model.lm_head.weight is model.transformer.wte.weight
    assert model.config.tie_word_embeddings
    detach(model)
    restored = dict(model.named_parameters(remove_duplicate=False))
    assert restored.keys() == weights.keys()
    assert all(restored[name] is weight for name, weight in weights.items())
    assert all(torch.equal(restored[name], value) for name, value in values.items())


@each_kind
def test_gradients_beside_a_conv1d_are_those_of_the_dense_truth(kind: str) -> None:
    torch.manual_seed(0)
    layer = the_layer(adapted(nn.Sequential(Conv1D(12, 8)), kind))
    x, dy = torch.randn(5, 8, requires_grad=True), torch.randn(5, 12)
    layer(x).backward(dy)
    # A factor's gradient is that of <dyᵀ·x, ΔW>.
    dense = dy.double().T @ x.detach().double()
    found = gradients(layer)
    for name, factor in layer.factors().items():
        step, values = 1e-3 * torch.randn_like(factor), factor.detach().clone()
        factor.data = values + step
        above = written_out(layer)
        factor.data = values - step
        below = written_out(layer)
        factor.data = values
        slope = (dense * (above - below)).sum() / 2
        torch.testing.assert_close((found[name].double() * step).sum(), slope, rtol=1e-2, atol=1e-4)
    expected = dy.double() @ (layer.base.weight.double().T + written_out(layer))
    torch.testing.assert_close(x.grad.double(), expected, rtol=1e-4, atol=1e-4)


# Quantized linears


def four_bit(kind: str, **settings: object) -> nn.Module:
    base = bnb.nn.Linear4bit(64, 96, quant_type=kind, compute_dtype=torch.float32, **settings)
    base.load_state_dict(nn.Linear(64, 96).state_dict())
    return base.to("cpu")


def eight_bit() -> nn.Module:
    base = bnb.nn.Linear8bitLt(64, 96, has_fp16_weights=False)
    base.load_state_dict(nn.Linear(64, 96).state_dict())
    return base.to("cpu")


def torch_ao() -> nn.Module:
    plain = nn.Sequential(nn.Linear(64, 96))
    return torch.ao.quantization.quantize_dynamic(plain, {nn.Linear}, dtype=torch.qint8)[0]


BITSANDBYTES = {"nf4": lambda: four_bit("nf4"), "fp4": lambda: four_bit("fp4"), "int8": eight_bit}
QUANTIZED = {**BITSANDBYTES, "torch.ao": torch_ao}


@each_kind
@pytest.mark.parametrize("make", BITSANDBYTES.values(), ids=BITSANDBYTES)
def test_a_bitsandbytes_layer_stays_as_it_is_and_gets_a_correction_that_learns(
    make: Callable[[], nn.Module], kind: str
) -> None:
    torch.manual_seed(0)
    base = make()
    assert base.weight.dtype in (torch.uint8, torch.int8)
    x, dy = torch.randn(5, 64), torch.randn(5, 96)
    alone = x.clone().requires_grad_(True)
    y = base(alone)
    y.backward(dy)
    layer = the_layer(adapted(nn.Sequential(base), kind))
    assert layer.base is base
    assert (layer.in_features, layer.out_features) == (64, 96)
    beside = x.clone().requires_grad_(True)
    output = layer(beside)
    delta = written_out(layer)
    torch.testing.assert_close(output.double(), y.double() + x.double() @ delta.T, rtol=1e-4, atol=1e-4)
    output.backward(dy)
    expected = alone.grad.double() + dy.double() @ delta
    torch.testing.assert_close(beside.grad.double(), expected, rtol=1e-4, atol=1e-4)
    found = gradients(layer)
    assert found.keys() == layer.factors().keys()
    assert all(gradient.count_nonzero() for gradient in found.values())


@pytest.mark.parametrize("make", QUANTIZED.values(), ids=QUANTIZED)
def test_merging_into_a_quantized_weight_is_refused_by_name_and_nothing_is_merged(
    make: Callable[[], nn.Module],
) -> None:
    torch.manual_seed(0)
    model = adapted(nn.Sequential(nn.Linear(64, 64), make()), "kron_lora")
    x = torch.randn(3, 64)
    with torch.no_grad():
        before = model(x)
        with pytest.raises(
            AdapterError, match=r"layer '1' cannot be merged: its Linear\w* keeps a quantized weight"
        ):
            merge(model)
        assert [path for path, _ in adapted_layers(model)] == ["0", "1"]
        assert torch.equal(model(x), before)
        assert type(detach(model)[1]) is type(make())


@each_kind
def test_a_dynamically_quantized_layer_of_torch_gets_a_correction(kind: str) -> None:
    torch.manual_seed(0)
    base, x = torch_ao(), torch.randn(5, 64)
    y = base(x)
    layer = the_layer(adapted(nn.Sequential(base), kind))
    output = layer(x)
    torch.testing.assert_close(
        output.double(), y.double() + x.double() @ written_out(layer).T, rtol=1e-4, atol=1e-4
    )
    output.sum().backward()
    assert gradients(layer).keys() == layer.factors().keys()


@pytest.mark.parametrize("bits", [4, 8])
def test_a_llama_that_transformers_has_quantized_learns(bits: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2, vocab_size=32
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    quantization = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8)
    model = LlamaForCausalLM.from_pretrained(tmp_path, quantization_config=quantization, device_map="cpu")
    # In evaluation mode bitsandbytes itself may repack its weights for the processor.
    adapted(model.train(), "kron_lora", std=0.05)
    quantized = [layer for _, layer in adapted_layers(model) if type(layer.base) is not nn.Linear]
    assert len(quantized) == 7
    weights = [layer.base.weight.detach().clone() for layer in quantized]
    optimizer = torch.optim.AdamW(trained(model).values(), lr=5e-2)
    losses = []
    for _ in range(20):
        loss = model(TOKENS, labels=TOKENS).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    assert all(torch.equal(layer.base.weight, w) for layer, w in zip(quantized, weights, strict=True))


def test_adapters_need_none_of_the_libraries_whose_layers_they_wrap() -> None:
    program = (
        "import sys, torch, fedkron.adapters as f\n"
        "f.attach(torch.nn.Sequential(torch.nn.Linear(8, 8)), f.AdapterSpec(d_a2=4))\n"
        "print(*sorted({'bitsandbytes', 'peft', 'transformers', 'torchao'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
