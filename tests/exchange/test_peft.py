"""PEFT itself is the judge: it loads what we write, and we read what it writes."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from federation_cases import save_tiny_bert, tiny_tokenizer
from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaForCausalLM,
)

from fedkron.adapters import (
    AdapterSpec,
    adapted_layers,
    adapter_layout,
    adapter_state,
    attach,
    attach_layout,
    load_adapter_state,
    merge,
)
from fedkron.base import load_base
from fedkron.errors import AdapterError
from fedkron.exchange import AdapterFile, is_peft_checkpoint, read_peft
from fedkron.exchange.conversion import as_kron_lora, as_lora
from fedkron.exchange.peft_export import write_peft
from fedkron.exchange.peft_import import import_peft
from fedkron.layout import AdapterLayout, ModuleLayout, TensorLayout

SPECS = {
    "kron_lora": AdapterSpec("kron_lora", rank=3, alpha=7.0, d_a1=2, d_a2=4),
    "lora": AdapterSpec("lora", rank=3, alpha=7.0),
    "krona": AdapterSpec("krona", rank=3, alpha=7.0, d_a1=2, d_a2=4),
    "adakron": AdapterSpec("adakron", rank=3, alpha=7.0, d_a1=4, d_a2=2, terms=2),
    "moka": AdapterSpec("moka", rank=2, alpha=7.0, d_a1=2, d_a2=4, terms=3),
}
RANKS = {"kron_lora": 2 * 3, "lora": 3, "krona": 2 * 16, "adakron": 2 * 2 * 3, "moka": 3 * 2 * 2}
"""M·r·min(d_A1, d_A2); krona has the rank of B in place of r, at most 16 here."""

INPUTS = {"input_ids": torch.arange(24).view(2, 12), "attention_mask": torch.ones(2, 12, dtype=torch.long)}


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny BERT, LLaMA and GPT-2 on disk."""
    folder = tmp_path_factory.mktemp("bases")
    torch.manual_seed(0)
    llama = LlamaConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    LlamaForCausalLM(llama).save_pretrained(folder / "llama")
    GPT2Model(GPT2Config(vocab_size=32, n_embd=32, n_layer=2, n_head=2, n_positions=32)).save_pretrained(
        folder / "gpt2"
    )
    for name in ("llama", "gpt2"):
        tiny_tokenizer().save_pretrained(folder / name)
    return {
        "bert": save_tiny_bert(folder / "bert"),
        "llama": folder / "llama",
        "gpt2": folder / "gpt2",
    }


def trained(base: Path, spec: AdapterSpec, seed: int = 0) -> AdapterFile:
    """An adapter on a base, all factors random."""
    loaded = load_base(str(base))
    model = attach(loaded.backbone, spec)
    generator = torch.Generator().manual_seed(seed)
    for _, layer in adapted_layers(model):
        for factor in layer.factors().values():
            nn.init.normal_(factor, std=0.2, generator=generator)
    layout = adapter_layout(model, loaded.fingerprint)
    return AdapterFile(adapter_state(model), layout, str(base), lineage=("made here",))


def adapted(base: Path, adapter: AdapterFile) -> nn.Module:
    model = attach_layout(load_base(str(base)).backbone, adapter.layout)
    load_adapter_state(model, adapter.state)
    return model.eval()


def hidden(model: nn.Module) -> Tensor:
    with torch.no_grad():
        output: Tensor = model(**INPUTS).last_hidden_state
    return output


def largest_difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


def deltas(adapter: AdapterFile) -> dict[str, Tensor]:
    """ΔW of each layer as the kinds compute it themselves, formed in float64."""
    model = adapted(Path(adapter.base_name), adapter).double()
    return {path: layer.delta().detach() for path, layer in adapted_layers(model)}


@pytest.mark.parametrize("base", ["bert", "llama"])
@pytest.mark.parametrize("kind", SPECS)
def test_peft_computes_what_we_compute(kind: str, base: str, bases: dict[str, Path], tmp_path: Path) -> None:
    adapter = trained(bases[base], SPECS[kind])
    export = write_peft(tmp_path / "peft", adapter, task_type="FEATURE_EXTRACTION")
    assert export.rank == RANKS[kind]

    # The checkpoint itself: one rounding to float32, however large the factors are.
    tensors = load_file(tmp_path / "peft/adapter_model.safetensors")
    for path, delta in deltas(adapter).items():
        lora_A, lora_B = (tensors[f"base_model.model.{path}.lora_{x}.weight"].double() for x in "AB")
        assert float((lora_B @ lora_A - delta).norm() / delta.norm()) < 1e-7

    # What is computed with it also has the rounding of two float32 models, which grows with ΔW.
    ours = adapted(bases[base], adapter)
    theirs = PeftModel.from_pretrained(AutoModel.from_pretrained(bases[base]), tmp_path / "peft").eval()
    assert largest_difference(hidden(ours), hidden(theirs)) < 1e-5
    bare = hidden(AutoModel.from_pretrained(bases[base]).eval())
    assert largest_difference(hidden(ours), bare) > 1e-2, "an adapter that does nothing proves nothing"

    merge(ours)
    merged = theirs.merge_and_unload().state_dict()
    for name, weight in ours.state_dict().items():
        torch.testing.assert_close(merged[name], weight, rtol=1e-6, atol=1e-6)


def test_transposed_weights_are_left_to_peft(bases: dict[str, Path], tmp_path: Path) -> None:
    adapter = trained(bases["gpt2"], SPECS["kron_lora"])
    write_peft(tmp_path / "peft", adapter)
    with pytest.warns(UserWarning, match="fan_in_fan_out"):
        theirs = PeftModel.from_pretrained(AutoModel.from_pretrained(bases["gpt2"]), tmp_path / "peft")
    assert largest_difference(hidden(adapted(bases["gpt2"], adapter)), hidden(theirs.eval())) < 1e-5
    assert set(deltas(import_peft(tmp_path / "peft").adapter)) == set(deltas(adapter))


def test_a_prefix_places_the_adapter_in_a_larger_model(bases: dict[str, Path], tmp_path: Path) -> None:
    adapter = trained(bases["llama"], SPECS["kron_lora"])
    write_peft(tmp_path / "peft", adapter, prefix="model", task_type="CAUSAL_LM")
    theirs = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(bases["llama"]), tmp_path / "peft"
    )
    ours = AutoModelForCausalLM.from_pretrained(bases["llama"])
    attach_layout(ours.model, adapter.layout)
    load_adapter_state(ours.model, adapter.state)
    with torch.no_grad():
        assert largest_difference(ours.eval()(**INPUTS).logits, theirs.eval()(**INPUTS).logits) < 1e-5

    back = import_peft(tmp_path / "peft").adapter
    assert [m.path for m in back.layout.modules] == [m.path for m in adapter.layout.modules]
    with pytest.raises(AdapterError, match=r"begins with 'bert\.'"):
        import_peft(tmp_path / "peft", prefix="bert")


def test_layers_that_differ_get_one_rank_and_no_scale(bases: dict[str, Path], tmp_path: Path) -> None:
    # vLLM reads r and lora_alpha only, llama.cpp lora_alpha and the rank of each tensor.
    parts = [
        trained(bases["bert"], replace(SPECS[kind], targets=(targets,)))
        for kind, targets in (("kron_lora", "*.query"), ("lora", "*.value"), ("adakron", "*.key"))
    ]
    modules = tuple(module for part in parts for module in part.layout.modules)
    state = {name: tensor for part in parts for name, tensor in part.state.items()}
    adapter = replace(parts[0], state=state, layout=AdapterLayout(parts[0].layout.base, modules))
    write_peft(tmp_path / "peft", adapter)
    config = json.loads((tmp_path / "peft/adapter_config.json").read_text())
    tensors = load_file(tmp_path / "peft/adapter_model.safetensors")
    assert config["lora_alpha"] == config["r"] == RANKS["adakron"]
    assert {t.shape[0] for name, t in tensors.items() if "lora_A" in name} == {config["r"]}
    assert {t.shape[1] for name, t in tensors.items() if "lora_B" in name} == {config["r"]}
    theirs = PeftModel.from_pretrained(AutoModel.from_pretrained(bases["bert"]), tmp_path / "peft")
    assert largest_difference(hidden(adapted(bases["bert"], adapter)), hidden(theirs.eval())) < 1e-5


def test_a_b_of_lower_rank_than_its_size_makes_a_smaller_checkpoint(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    adapter = trained(bases["bert"], SPECS["krona"])
    for module in adapter.layout.modules:
        B = adapter.state[module.tensor_name("B")]
        # Small integers: the products are exact, and so is the rank.
        columns, rows = np.arange(len(B)) % 3 - 1, np.arange(B.shape[1]) % 5 - 2
        B[...] = np.outer(columns, rows) + np.outer(columns**2, rows**2)
    before = deltas(adapter)
    assert write_peft(tmp_path / "peft", adapter).rank == 2 * 2
    after = deltas(import_peft(tmp_path / "peft").adapter)
    for path, delta in before.items():
        torch.testing.assert_close(after[path], delta, rtol=1e-5, atol=1e-6)


def test_an_untrained_adapter_is_exported_too(bases: dict[str, Path], tmp_path: Path) -> None:
    adapter = trained(bases["bert"], SPECS["krona"])
    zero = replace(adapter, state={name: np.zeros_like(tensor) for name, tensor in adapter.state.items()})
    write_peft(tmp_path / "peft", zero)
    theirs = PeftModel.from_pretrained(AutoModel.from_pretrained(bases["bert"]), tmp_path / "peft").eval()
    assert torch.equal(hidden(theirs), hidden(AutoModel.from_pretrained(bases["bert"]).eval()))


def test_a_shared_head_does_not_travel(bases: dict[str, Path], tmp_path: Path) -> None:
    adapter = trained(bases["bert"], SPECS["lora"])
    head = {"head.weight": np.ones((2, 32), np.float32), "head.bias": np.ones(2, np.float32)}
    with_head = replace(adapter, state=adapter.state | head, layout=adapter.layout.with_head(2, 32))
    assert write_peft(tmp_path / "peft", with_head).left_out == ("head.weight", "head.bias")
    assert as_lora(with_head).state.keys() == with_head.state.keys()


def test_same_adapter_same_bytes_and_nothing_else_is_overwritten(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "peft"
    adapter = trained(bases["bert"], SPECS["kron_lora"])
    folder.mkdir()
    write_peft(folder, adapter)
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    write_peft(folder, adapter)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first
    assert list(tmp_path.iterdir()) == [folder], "no temporary folder is left"

    (folder / "notes.txt").write_text("mine")
    with pytest.raises(AdapterError, match=r"notes\.txt"):
        write_peft(folder, trained(bases["bert"], SPECS["lora"]))
    assert {path.name for path in folder.iterdir()} == {*first, "notes.txt"}
    with pytest.raises(AdapterError, match="is a file"):
        write_peft(folder / "notes.txt", adapter)


def peft_checkpoint(
    folder: Path, base: Path, config: PeftConfig, model_class: type = AutoModel, **arguments: int
) -> PeftModel:
    """A model wrapped by PEFT, all parameters of the adapter random, saved by PEFT."""
    torch.manual_seed(1)
    model = get_peft_model(model_class.from_pretrained(base, **arguments), config).eval()
    for name, parameter in model.named_parameters():
        if "lora_" in name or "lokr_" in name:
            nn.init.normal_(parameter, std=0.4)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=4, lora_alpha=6, target_modules=["query", "value"]),
        LoraConfig(
            r=4, lora_alpha=6, use_rslora=True, target_modules="all-linear", task_type="FEATURE_EXTRACTION"
        ),
        LoraConfig(
            r=4,
            lora_alpha=6,
            target_modules=["query", "intermediate.dense"],
            rank_pattern={"layer.0.attention.self.query": 2, r"layer\.\d\.intermediate.dense": 5},
            alpha_pattern={"^encoder.layer.1.attention.self.query": 12, "dense": 3},
        ),
        LoKrConfig(r=2, alpha=6, target_modules=["query", "intermediate.dense"]),
        LoKrConfig(r=1, alpha=3, target_modules=["value"], decompose_both=True, decompose_factor=8),
        LoKrConfig(
            r=16,
            alpha=4,
            target_modules=["key", "output.dense"],
            rank_pattern={"key": 2},
            alpha_pattern={"output.dense": 40},
        ),
    ],
    ids=["lora", "rslora", "lora-patterns", "lokr", "lokr-both", "lokr-full"],
)
def test_what_peft_wrote_computes_the_same_here(
    config: PeftConfig, bases: dict[str, Path], tmp_path: Path
) -> None:
    theirs = peft_checkpoint(tmp_path / "peft", bases["bert"], config)
    found = import_peft(tmp_path / "peft")
    ours = adapted(bases["bert"], found.adapter)
    assert largest_difference(hidden(ours), hidden(theirs)) < 1e-5
    assert largest_difference(hidden(ours), hidden(AutoModel.from_pretrained(bases["bert"]).eval())) > 1e-2
    assert all(name.startswith("pooler.") for name in found.left_out)
    assert found.adapter.lineage == (f"imported from PEFT {config.peft_type.value}",)
    assert found.adapter.layout.base == load_base(str(bases["bert"])).fingerprint


def test_a_lokr_with_a_full_second_factor_is_krona(bases: dict[str, Path], tmp_path: Path) -> None:
    config = LoKrConfig(r=16, alpha=4, target_modules=["key", "value"], rank_pattern={"key": 2})
    peft_checkpoint(tmp_path, bases["bert"], config)
    checkpoint = read_peft(tmp_path)
    kinds = {module.path.rpartition(".")[2]: (module.kind, module.scale) for module in checkpoint.modules}
    assert kinds == {"key": ("kron_lora", 2.0), "value": ("krona", 0.25)}


def test_a_lora_comes_back_bit_for_bit(bases: dict[str, Path], tmp_path: Path) -> None:
    peft_checkpoint(tmp_path, bases["bert"], LoraConfig(r=4, lora_alpha=6, target_modules=["query"]))
    adapter = import_peft(tmp_path).adapter
    for name, tensor in load_file(tmp_path / "adapter_model.safetensors").items():
        ours = adapter.state[name.removeprefix("base_model.model.").removesuffix(".weight")]
        assert np.array_equal(ours, tensor.numpy())
    assert {module.scale for module in adapter.layout.modules} == {1.5}


def test_half_precision_checkpoints_are_read(bases: dict[str, Path], tmp_path: Path) -> None:
    peft_checkpoint(tmp_path, bases["bert"], LoraConfig(r=4, target_modules=["query"]))
    weights = tmp_path / "adapter_model.safetensors"
    rounded = {name: tensor.bfloat16() for name, tensor in load_file(weights).items()}
    save_file(rounded, weights)
    state = read_peft(tmp_path).state
    for name, tensor in rounded.items():
        ours = state[name.removeprefix("base_model.model.").removesuffix(".weight")]
        assert np.array_equal(ours, tensor.float().numpy())


def test_heads_outside_of_the_backbone_are_left_out(bases: dict[str, Path], tmp_path: Path) -> None:
    config = LoraConfig(r=4, target_modules=["query", "dense"], task_type="SEQ_CLS")
    theirs = peft_checkpoint(
        tmp_path, bases["bert"], config, AutoModelForSequenceClassification, num_labels=3
    )
    found = import_peft(tmp_path)
    assert set(found.left_out) == {"bert.pooler.dense", "classifier.weight", "classifier.bias"}
    ours = adapted(bases["bert"], found.adapter)
    assert largest_difference(hidden(ours), hidden(theirs.base_model.model.bert)) < 1e-5


Refused = Callable[[], PeftConfig]


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (lambda: LoraConfig(target_modules=["query"], use_dora=True), "use_dora"),
        (lambda: LoraConfig(target_modules=["query"], bias="all"), "bias is 'all'"),
        (lambda: LoraConfig(target_modules=["query"], lora_bias=True), "lora_bias"),
        (lambda: LoraConfig(target_modules=["query"], init_lora_weights="pissa"), "pissa"),
        (lambda: LoraConfig(target_modules=["query", "word_embeddings"]), "word_embeddings.lora_embedding_A"),
        (lambda: LoraConfig(target_modules=["query"], modules_to_save=["key"]), "self.key"),
        (
            lambda: LoraConfig(target_modules=["query"], trainable_token_indices={"word_embeddings": [1, 2]}),
            "trainable_token_indices",
        ),
        (lambda: LoHaConfig(target_modules=["query"]), "LOHA"),
    ],
)
def test_what_no_kind_represents_is_refused_by_name(
    config: Refused, named: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    peft_checkpoint(tmp_path, bases["bert"], config())
    with pytest.raises(AdapterError) as raised:
        import_peft(tmp_path)
    assert named in str(raised.value)


def test_a_checkpoint_for_another_model_names_the_layer(bases: dict[str, Path], tmp_path: Path) -> None:
    peft_checkpoint(tmp_path, bases["bert"], LoraConfig(target_modules=["query"]))
    with pytest.raises(AdapterError, match=r"encoder\.layer\.0\.attention\.self\.query"):
        import_peft(tmp_path, base_name=str(bases["llama"]))


def test_damaged_checkpoints_are_errors_that_say_so(bases: dict[str, Path], tmp_path: Path) -> None:
    assert not is_peft_checkpoint(tmp_path)
    config, weights = tmp_path / "adapter_config.json", tmp_path / "adapter_model.safetensors"
    peft_checkpoint(tmp_path, bases["bert"], LoraConfig(r=4, target_modules=["query"]))
    good, tensors = config.read_text(), load_file(weights)

    for content in ("{", "[]", json.dumps(json.loads(good) | {"r": 3}), json.dumps({"peft_type": "LORA"})):
        config.write_text(content)
        with pytest.raises(AdapterError, match=str(tmp_path)):
            read_peft(tmp_path)
    config.write_text(good)
    for broken, named in (
        ({name: t for name, t in tensors.items() if "lora_B" not in name}, "lora_B"),
        ({name: t[..., None, None] for name, t in tensors.items()}, "only linear layers"),
        ({name: t * float("nan") for name, t in tensors.items()}, "not finite"),
        ({f"x.{name}": t for name, t in tensors.items()}, "does not begin"),
        ({}, "no LORA layer"),
    ):
        save_file({name: t.contiguous() for name, t in broken.items()}, weights)
        with pytest.raises(AdapterError, match=named):
            read_peft(tmp_path)
    weights.write_bytes(b"nonsense")
    with pytest.raises(AdapterError, match="cannot be read"):
        read_peft(tmp_path)
    weights.unlink()
    with pytest.raises(AdapterError, match=r"adapter_model\.safetensors is missing"):
        read_peft(tmp_path)


@pytest.mark.parametrize("kind", SPECS)
def test_every_kind_is_exactly_a_lora(kind: str, bases: dict[str, Path]) -> None:
    adapter = trained(bases["bert"], SPECS[kind])
    converted = as_lora(adapter)
    assert converted.lineage == (*adapter.lineage, f"converted from {kind} to lora, exactly")
    assert {module.kind for module in converted.layout.modules} == {"lora"}
    after = deltas(converted)
    for path, delta in deltas(adapter).items():
        torch.testing.assert_close(after[path], delta, rtol=1e-5, atol=1e-6)


def one_layer(lora_B: np.ndarray, lora_A: np.ndarray, scale: float = 1.5) -> AdapterFile:
    """A LoRA adapter of one layer, without a base."""
    factors = (TensorLayout("lora_A", lora_A.shape), TensorLayout("lora_B", lora_B.shape))
    module = ModuleLayout("layer", "lora", scale, (len(lora_B), lora_A.shape[1]), factors)
    state = {"layer.lora_A": lora_A.astype(np.float32), "layer.lora_B": lora_B.astype(np.float32)}
    return AdapterFile(state, AdapterLayout("", (module,)), "none")


def formed(adapter: AdapterFile) -> np.ndarray:
    """ΔW of the one layer with numpy alone, in float64."""
    (module,) = adapter.layout.modules
    f = {factor.name: adapter.state[f"layer.{factor.name}"].astype(np.float64) for factor in module.factors}
    if module.kind == "lora":
        return module.scale * f["lora_B"] @ f["lora_A"]
    return module.scale * np.kron(f["A"], f["B1"] @ f["B2"])


def rearranged(delta: np.ndarray, d_a2: int, d_a1: int) -> np.ndarray:
    """Van Loan's rearrangement: one row per block, so that A ⊗ B becomes vec(A)·vec(B)ᵀ."""
    blocks = [block for row in np.vsplit(delta, d_a2) for block in np.hsplit(row, d_a1)]
    return np.stack([block.ravel() for block in blocks])


RNG = np.random.default_rng(5)
PAIR = RNG.standard_normal((24, 5)), RNG.standard_normal((5, 18))
SHAPES = [(4, 2), (2, 3), (1, 1), (24, 18), (8, 1)]


@pytest.mark.parametrize(("d_a2", "d_a1"), SHAPES)
def test_where_the_rank_is_free_the_nearest_product_is_van_loans(d_a2: int, d_a1: int) -> None:
    source = one_layer(*PAIR)
    converted, (error,) = as_kron_lora(source, AdapterSpec(rank=24, d_a1=d_a1, d_a2=d_a2))
    delta = formed(source)
    singular = np.linalg.svd(rearranged(delta, d_a2, d_a1), compute_uv=False)
    best = np.sqrt(np.sum(singular[1:] ** 2)) / np.linalg.norm(delta)
    assert error.relative == pytest.approx(best, abs=1e-7)
    distance = np.linalg.norm(formed(converted) - delta) / np.linalg.norm(delta)
    assert distance == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize(("d_a2", "d_a1"), SHAPES)
def test_where_the_rank_binds_neither_factor_can_be_improved(d_a2: int, d_a1: int, rank: int) -> None:
    source = one_layer(*PAIR)
    spec = AdapterSpec(rank=rank, d_a1=d_a1, d_a2=d_a2)
    converted, (error,) = as_kron_lora(source, spec)
    delta = formed(source)
    blocks = rearranged(delta, d_a2, d_a1)
    A = converted.state["layer.A"].ravel().astype(np.float64)
    B = converted.state["layer.B1"].astype(np.float64) @ converted.state["layer.B2"]
    distance = np.linalg.norm(formed(converted) - delta)
    assert error.relative == pytest.approx(distance / np.linalg.norm(delta), abs=1e-6)

    # Given B, least squares; given A, Eckart and Young.
    best_A = np.linalg.lstsq(B.reshape(-1, 1), blocks.T, rcond=None)[0]
    assert np.linalg.norm(blocks.T - B.reshape(-1, 1) @ best_A) == pytest.approx(distance, rel=1e-5, abs=1e-5)
    U, S, Vt = np.linalg.svd((A @ blocks / (A @ A)).reshape(B.shape), full_matrices=False)
    best_B = (U[:, :rank] * S[:rank]) @ Vt[:rank]
    assert np.linalg.norm(blocks - np.outer(A, best_B)) == pytest.approx(distance, rel=1e-5, abs=1e-5)


def test_a_product_is_found_again_and_its_error_is_nothing() -> None:
    A, B1, B2 = RNG.standard_normal((4, 2)), RNG.standard_normal((6, 3)), RNG.standard_normal((3, 9))
    source = one_layer(np.kron(A, B1), np.kron(np.eye(2), B2), scale=0.25)
    for rank in (3, 8):
        converted, (error,) = as_kron_lora(source, AdapterSpec(rank=rank, d_a1=2, d_a2=4))
        assert error.relative < 1e-6
        np.testing.assert_allclose(formed(converted), formed(source), rtol=0, atol=1e-5)
        # Every row of B2 can be trained on, whether the product needs it or not.
        assert converted.lineage == ("converted from lora to kron_lora, relative error 0.0000",)
        assert converted.spec == {"kind": "kron_lora", "rank": rank, "alpha": 32.0, "d_a1": 2, "d_a2": 4}
        rows = converted.state["layer.B2"]
        np.testing.assert_allclose(rows @ rows.T, np.eye(rank) / 3, atol=1e-6)
        assert np.linalg.norm(converted.state["layer.A"]) == pytest.approx(2)


def test_a_layer_of_zero_stays_zero_and_trainable() -> None:
    source = one_layer(np.zeros((24, 5)), PAIR[1])
    converted, (error,) = as_kron_lora(source, AdapterSpec(rank=3, d_a1=2, d_a2=4))
    assert not converted.state["layer.B1"].any()
    assert np.linalg.matrix_rank(converted.state["layer.B2"]) == 3
    assert converted.state["layer.A"].any()
    assert error.relative == 0


def test_a_rank_beyond_the_size_of_b_is_filled_with_zeros() -> None:
    source = one_layer(*PAIR)
    converted, _ = as_kron_lora(source, AdapterSpec(rank=7, d_a1=9, d_a2=12))
    assert converted.state["layer.B1"].shape == (2, 7)
    assert not converted.state["layer.B2"][2:].any()


def test_a_size_that_does_not_divide_names_the_layer() -> None:
    with pytest.raises(AdapterError, match=r"'layer'.*d_a1 = 4.*1, 2, 3, 6, 9, 18"):
        as_kron_lora(one_layer(*PAIR), AdapterSpec(d_a1=4, d_a2=2))


def test_factors_of_another_kind_are_an_error_that_names_the_layer() -> None:
    source = one_layer(*PAIR)
    (module,) = source.layout.modules
    for wrong in (replace(module, kind="krona"), replace(module, weight_shape=(24, 9))):
        with pytest.raises(AdapterError, match="'layer'"):
            as_kron_lora(replace(source, layout=AdapterLayout("", (wrong,))), AdapterSpec(d_a2=2))
