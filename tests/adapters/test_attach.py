import copy
from collections import OrderedDict
from dataclasses import replace
from typing import Any

import pytest
import torch
from adapter_cases import SPECS, patient, randomise
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import (
    DistilBertConfig,
    DistilBertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from fedkron.adapters import (
    AdaptedLinear,
    AdapterSpec,
    adapted_layers,
    adapter_layout,
    adapter_state,
    attach,
    attach_layout,
    count_parameters,
    default_d_a2,
    detach,
    load_adapter_state,
    merge,
)
from fedkron.errors import AdapterError, ConfigError, FedKronError
from fedkron.layout import AdapterLayout

each_kind = pytest.mark.parametrize("kind", SPECS)

# Any tokens will do for the tiny decoder.
TOKENS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


class Net(nn.Module):
    """Not square, no bias here and there, one layer in two places, and a head without pretrained weights."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(8, 24)
        self.first = nn.Linear(24, 24, bias=False)
        self.second = self.first
        self.norm = nn.LayerNorm(24)
        self.down = nn.Linear(24, 12)
        self.head = nn.Sequential(OrderedDict(dense=nn.Linear(12, 7), out=nn.Linear(7, 3)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.second(torch.tanh(self.first(self.up(x)))))
        return self.head(torch.tanh(self.down(x)))


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def tiny_decoder() -> LlamaForCausalLM:
    """Its `lm_head` and its embedding are one tensor."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=20,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


def spec_for_net(kind: str, **changes: Any) -> AdapterSpec:  # noqa: ANN401
    return replace(SPECS[kind], full=("head",), **changes)


def snapshot(model: nn.Module) -> dict[str, Any]:
    """All modules, and all parameters with their values: what must not change."""
    return {
        "modules": {path: id(module) for path, module in model.named_modules(remove_duplicate=False)},
        "training": {path: module.training for path, module in model.named_modules()},
        "parameters": {
            name: (id(p), p.requires_grad, p.dtype, p.detach().clone().numpy().tobytes())
            for name, p in model.named_parameters(remove_duplicate=False)
        },
    }


# The sizes of the paper, on the meta device.

FULL = ("pre_classifier", "classifier")


@pytest.mark.parametrize(
    ("spec", "parameters"),
    [
        (AdapterSpec("kron_lora", full=FULL), 840_481),
        (AdapterSpec("kron_lora", d_a2=4, full=FULL), 840_481),
        (AdapterSpec("lora", rank=4, full=FULL), 923_137),
        (AdapterSpec("lora", rank=8, full=FULL), 1_254_913),
        (AdapterSpec("lora", rank=16, full=FULL), 1_918_465),
    ],
)
def test_distilbert_with_a_trained_head_has_the_papers_number_of_parameters(
    spec: AdapterSpec, parameters: int
) -> None:
    with torch.device("meta"):
        model = DistilBertForSequenceClassification(DistilBertConfig(num_labels=1))
    attach(model, spec)
    assert count_parameters(model) == parameters
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == parameters


@pytest.mark.parametrize(
    ("spec", "parameters"), [(AdapterSpec("kron_lora"), 5_708_448), (AdapterSpec("lora"), 21_260_288)]
)
def test_mistral_7b_with_its_lm_head_has_the_papers_number_of_parameters(
    spec: AdapterSpec, parameters: int
) -> None:
    with torch.device("meta"):
        model = MistralForCausalLM(MistralConfig())
    attach(model, spec)
    assert isinstance(model.lm_head, AdaptedLinear)
    assert count_parameters(model) == parameters
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == parameters


LLAMA_2_7B = {"vocab_size": 32_000, "intermediate_size": 11_008, "num_key_value_heads": 32}
LLAMA_3_8B = {"vocab_size": 128_256, "intermediate_size": 14_336, "num_key_value_heads": 8}


@pytest.mark.parametrize("config", [LLAMA_2_7B, LLAMA_3_8B])
def test_llama_has_the_number_of_parameters_that_its_shapes_give(config: dict[str, int]) -> None:
    hidden, inner = 4096, config["intermediate_size"]
    small = 128 * config["num_key_value_heads"]
    layer = [(hidden, hidden), (hidden, small), (hidden, small), (hidden, hidden)]
    layer += [(hidden, inner), (hidden, inner), (inner, hidden)]
    shapes = [*(layer * 32), (hidden, config["vocab_size"])]
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=32, num_attention_heads=32, **config))
    attach(model, AdapterSpec("kron_lora"))
    assert count_parameters(model) == sum(16 * 2 + 8 * (d_in // 2 + d_out // 16) for d_in, d_out in shapes)
    attach(detach(model), AdapterSpec("lora"))
    assert count_parameters(model) == sum(8 * (d_in + d_out) for d_in, d_out in shapes)


@pytest.mark.parametrize(("hidden_size", "d_a2"), [(1, 1), (384, 2), (768, 4), (1024, 4), (4096, 16)])
def test_d_a2_of_known_widths_is_that_of_the_paper(hidden_size: int, d_a2: int) -> None:
    assert default_d_a2(hidden_size) == d_a2


@patient
@given(st.integers(1, 100_000))
def test_no_power_of_two_is_nearer_to_a_200th_of_the_width_than_d_a2(hidden_size: int) -> None:
    nearest = min(abs(2**k - hidden_size / 200) for k in range(12))
    d_a2 = default_d_a2(hidden_size)
    assert d_a2 in {2**k for k in range(12)}
    assert abs(d_a2 - hidden_size / 200) == nearest


# What is wrapped and what is trained.


@each_kind
def test_only_the_factors_and_the_modules_in_full_are_trained(kind: str) -> None:
    model = attach(net(), spec_for_net(kind))
    factors = {f"{path}.{name}" for path, layer in adapted_layers(model) for name in type(layer).factor_names}
    head = {f"head.{layer}.{name}" for layer in ("dense", "out") for name in ("weight", "bias")}
    assert {name for name, p in model.named_parameters() if p.requires_grad} == factors | head
    assert [path for path, _ in adapted_layers(model)] == ["up", "first", "down"]
    assert not any(isinstance(module, AdaptedLinear) for module in model.head.modules())


def test_a_module_in_two_places_is_wrapped_once_and_stays_shared() -> None:
    model = net()
    shared = model.first
    attach(model, spec_for_net("lora"))
    assert model.first is model.second
    assert model.first.base is shared
    assert detach(model).first is model.second is shared


def test_targets_are_globs_on_the_full_path() -> None:
    model = attach(tiny_decoder(), AdapterSpec("lora", targets=("*.self_attn.?_proj", "lm_head")))
    wrapped = [path.rpartition(".")[2] for path, _ in adapted_layers(model)]
    assert wrapped == ["q_proj", "k_proj", "v_proj", "o_proj", "lm_head"]


@pytest.mark.parametrize("targets", [("*", "!*.mlp.*", "!lm_head"), ("!*.mlp.*", "!lm_head")])
def test_a_target_with_an_exclamation_mark_leaves_layers_out(targets: tuple[str, ...]) -> None:
    model = attach(tiny_decoder(), AdapterSpec("lora", targets=targets))
    wrapped = [path.rpartition(".")[2] for path, _ in adapted_layers(model)]
    assert wrapped == ["q_proj", "k_proj", "v_proj", "o_proj"]


def test_layers_whose_weights_torch_reads_without_calling_them_are_left_alone() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
            self.out = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.encoder(x + self.attention(x, x, x)[0]))

    torch.manual_seed(0)
    model = attach(Mixed(), SPECS["lora"])
    randomise(model)
    assert [path for path, _ in adapted_layers(model)] == ["out"]
    # Why: in evaluation mode torch computes these in one go, and a wrapper would have no effect.
    x = torch.randn(2, 5, 8)
    torch.testing.assert_close(model.eval()(x), model.train()(x), rtol=1e-5, atol=1e-5)


@each_kind
def test_a_wrapped_layer_keeps_the_mode_of_the_layer_it_wraps(kind: str) -> None:
    model = net()
    model.down.eval()
    attach(model, spec_for_net(kind))
    assert model.up.training
    assert not model.down.training
    assert not model.down.dropout.training


@each_kind
def test_attaching_does_not_change_any_output(kind: str) -> None:
    model, x = net(), torch.randn(4, 8)
    before = model(x)
    assert torch.equal(attach(model, spec_for_net(kind))(x), before)


# What is refused.


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        (
            AdapterSpec(d_a2=4, targets=("up", "down", "head.*")),
            AdapterError,
            r"'head\.dense' cannot be wrapped: d_out = 7 does not divide by d_a2 = 4: d_a2 may be 1, 7; "
            r"or leave it out, with '!head\.dense' as a target$",
        ),
        (
            AdapterSpec(d_a2=1, targets=("up", "head.out")),
            AdapterError,
            r"'head\.out' cannot be wrapped: d_in = 7 does not divide by d_a1 = 2: d_a1 may be 1, 7; "
            r"or leave it out, with '!head\.out'",
        ),
        (AdapterSpec(targets=("up",)), AdapterError, "'up' cannot be wrapped: d_a2 is not set"),
        (
            AdapterSpec("lora", targets=("encoder.*", "Up")),
            AdapterError,
            r"no linear layer of Net matches the targets encoder\.\*, Up$",
        ),
        (AdapterSpec("lora", targets=("norm",)), AdapterError, r"no linear layer of Net matches"),
        (
            AdapterSpec("lora", full=("tail",)),
            AdapterError,
            "module 'tail', to be trained in full, is not in",
        ),
        (AdapterSpec("loha"), ConfigError, "'loha' does not exist"),
    ],
)
def test_a_spec_that_does_not_fit_is_refused_and_the_model_stays_untouched(
    spec: AdapterSpec, error: type[FedKronError], message: str
) -> None:
    model = net().eval()
    model.norm.requires_grad_(False)
    before = snapshot(model)
    with pytest.raises(error, match=message):
        attach(model, spec)
    assert snapshot(model) == before


def test_a_second_adapter_is_refused_and_the_first_stays() -> None:
    model = attach(net(), spec_for_net("kron_lora"))
    before = snapshot(model)
    with pytest.raises(AdapterError, match="has an adapter already: detach it, or merge it, first"):
        attach(model, AdapterSpec("lora", targets=("head.*",)))
    assert snapshot(model) == before


def test_a_bare_linear_layer_is_refused_because_it_has_no_place_to_be_replaced_in() -> None:
    layer = nn.Linear(8, 8)
    with pytest.raises(AdapterError, match=r"no linear layer of Linear matches"):
        attach(layer, SPECS["lora"])
    assert layer.weight.requires_grad


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, "rank is 0: it must be at least 1"),
        ({"d_a1": -2}, "d_a1 is -2"),
        ({"d_a2": 0}, "d_a2 is 0"),
        ({"alpha": 0.0}, r"alpha is 0\.0"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"alpha": float("inf")}, "alpha is inf"),
        ({"dropout": 1.0}, r"dropout is 1\.0"),
        ({"dropout": -0.1}, r"dropout is -0\.1"),
    ],
)
def test_a_hyper_parameter_out_of_range_is_refused_by_value(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AdapterSpec(**changes)


# Taking it off again.


@each_kind
def test_detaching_gives_the_same_modules_and_weights_back_bit_for_bit(kind: str) -> None:
    model = net()
    before = snapshot(model.requires_grad_(False))
    spec = replace(SPECS[kind], targets=("up", "first", "down"))
    attach(model, spec)
    randomise(model)
    detach(model)
    assert snapshot(model) == before
    assert not list(adapted_layers(model))
    attach(model, spec)


@each_kind
@pytest.mark.parametrize(("rank", "alpha"), [(3, 7.0), (4, 1.0), (2, 2.0)])
def test_a_merged_model_gives_what_the_unmerged_one_gave(kind: str, rank: int, alpha: float) -> None:
    model, x = net(), torch.randn(16, 8)
    bare = model(x)
    attach(model, spec_for_net(kind, rank=rank, alpha=alpha))
    randomise(model)
    unmerged = model(x)
    assert (unmerged - bare).abs().max() > 0.1
    merge(model)
    assert [type(module) for module in (model.up, model.first, model.down)] == [nn.Linear] * 3
    assert model.first is model.second
    assert not any(p.requires_grad for name, p in model.named_parameters() if not name.startswith("head."))
    torch.testing.assert_close(model(x), unmerged, rtol=1e-5, atol=1e-5)


@each_kind
def test_unmerging_brings_back_the_same_layers_and_weights_bit_for_bit(kind: str) -> None:
    model, x = attach(net(), spec_for_net(kind)), torch.randn(16, 8)
    randomise(model)
    before, unmerged = snapshot(model), model(x)
    merged = merge(model)
    assert snapshot(model) != before
    merged.unmerge()
    assert snapshot(model) == before
    assert torch.equal(model(x), unmerged)


def test_merging_without_an_adapter_is_refused() -> None:
    with pytest.raises(AdapterError, match="no adapter is attached"):
        merge(net())


@each_kind
def test_merging_a_tied_lm_head_leaves_the_embedding_as_it_was(kind: str) -> None:
    model = tiny_decoder()
    embedding = model.model.embed_tokens.weight
    assert model.lm_head.weight is embedding
    before = embedding.detach().clone()
    attach(model, SPECS[kind])
    assert "lm_head" in dict(adapted_layers(model))
    randomise(model, std=0.1)
    unmerged = model(TOKENS).logits
    merged = merge(model)
    assert torch.equal(model.model.embed_tokens.weight, before)
    assert not model.config.tie_word_embeddings
    assert not torch.equal(model.lm_head.weight, before)
    torch.testing.assert_close(model(TOKENS).logits, unmerged, rtol=1e-5, atol=1e-5)
    merged.unmerge()
    assert model.config.tie_word_embeddings
    assert model.lm_head.weight is model.model.embed_tokens.weight is embedding


@each_kind
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_merging_rounds_once_to_the_dtype_of_the_weight(kind: str, dtype: torch.dtype) -> None:
    model = net().to(dtype)
    weight = model.up.weight.detach().clone()
    attach(model, spec_for_net(kind))
    randomise(model)
    delta = model.up.delta().detach()
    merge(model)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert torch.equal(model.up.weight, (weight.to(wide) + delta.to(wide)).to(dtype))
    if dtype == torch.float64:
        torch.testing.assert_close(model.up.weight - weight, delta.double(), rtol=1e-12, atol=1e-12)


def test_a_deep_copy_of_an_adapted_model_is_independent() -> None:
    model = attach(net(), spec_for_net("kron_lora"))
    randomise(model)
    layout = adapter_layout(model, "")
    other = copy.deepcopy(model)
    merge(other)
    assert adapter_layout(model, "") == layout


# An adapter that exists already.


@each_kind
def test_a_layout_attaches_to_another_copy_of_the_base_and_takes_the_state(kind: str) -> None:
    model, x = attach(net(), spec_for_net(kind)), torch.randn(4, 8)
    randomise(model)
    layout = replace(adapter_layout(model, ""), dense=())
    other = attach_layout(net(), layout)
    assert other.first is other.second
    load_adapter_state(other, {tensor.name: adapter_state(model)[tensor.name] for tensor in layout.tensors})
    assert torch.equal(other(x), model(x))
    assert replace(adapter_layout(other, ""), dense=()) == layout


def wrong(of: str, **changes: Any) -> AdapterLayout:  # noqa: ANN401
    layout = adapter_layout(attach(net(), spec_for_net(of)), "")
    module = layout.modules[0]
    if "factor" in changes:
        index, shape = changes.pop("factor")
        factors = list(module.factors)
        factors[index] = replace(factors[index], shape=shape)
        changes["factors"] = tuple(factors)
    return replace(layout, modules=(replace(module, **changes), *layout.modules[1:]))


@pytest.mark.parametrize(
    ("layout", "error", "message"),
    [
        (wrong("lora", path="left"), AdapterError, "a layer 'left', which is not a linear layer"),
        (wrong("lora", path="norm"), AdapterError, "a layer 'norm', which is not a linear layer"),
        (wrong("lora", kind="loha"), ConfigError, "'loha' does not exist"),
        (wrong("lora", kind="krona"), AdapterError, "'up'.*a krona adapter has factors A, B"),
        (wrong("lora", factor=(0, (3, 7))), AdapterError, r"'up' has a weight of \[24, 8\] here"),
        (wrong("lora", factor=(0, (2, 8))), AdapterError, "'up'.*are not those of lora"),
        (wrong("lora", factor=(0, (24,))), AdapterError, "'up'.*are not those of lora"),
        (wrong("kron_lora", factor=(0, (8,))), AdapterError, "'up'.*are not those of kron_lora"),
        (wrong("moka", factor=(3, (2,))), AdapterError, "'up'.*are not those of moka"),
        (wrong("lora", weight_shape=(8, 24)), AdapterError, r"'up' has a weight of \[24, 8\] here"),
    ],
)
def test_a_layout_that_does_not_fit_is_refused_and_the_model_stays_untouched(
    layout: AdapterLayout, error: type[FedKronError], message: str
) -> None:
    model = net()
    before = snapshot(model)
    with pytest.raises(error, match=message):
        attach_layout(model, layout)
    assert snapshot(model) == before


def test_a_layout_is_refused_where_an_adapter_is_attached() -> None:
    model = attach(net(), spec_for_net("lora"))
    with pytest.raises(AdapterError, match="has an adapter already"):
        attach_layout(model, adapter_layout(model, ""))
