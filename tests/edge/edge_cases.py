"""Tiny bases with random weights, random adapters on them, and what torch says."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import (
    AlbertConfig,
    AutoModel,
    BertConfig,
    DistilBertConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)

from fedkron.adapters import (
    AdapterSpec,
    adapted_layers,
    adapter_layout,
    adapter_state,
    attach,
    attach_layout,
    load_adapter_state,
)
from fedkron.base import Base, fingerprint, text_features
from fedkron.edge.device_adapter import DeviceAdapter, device_adapter
from fedkron.edge.graph import LAYER, copy_model
from fedkron.edge.slot import SlotLayout
from fedkron.edge.slot_graph import insert_head, insert_slot
from fedkron.exchange import AdapterFile, HeadFile
from fedkron.layout import AdapterLayout, ModuleLayout, State, TensorLayout

HIDDEN = 32
SIZE = {"hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
ONE_LAYER = SIZE | {"num_hidden_layers": 1}
CONFIGS: dict[str, PreTrainedConfig] = {
    "bert": BertConfig(**ONE_LAYER, vocab_size=60, max_position_embeddings=70),
    "distilbert": DistilBertConfig(
        dim=HIDDEN, n_layers=1, n_heads=4, hidden_dim=48, vocab_size=60, max_position_embeddings=70
    ),
    # Its layers are one layer, called twice.
    "albert": AlbertConfig(**SIZE, embedding_size=16, vocab_size=60, max_position_embeddings=70),
    "llama": LlamaConfig(**ONE_LAYER, num_key_value_heads=2, vocab_size=60, max_position_embeddings=70),
}
SPECS = {
    "kron_lora": AdapterSpec("kron_lora", rank=3, alpha=7.0, d_a1=2, d_a2=4),
    "lora": AdapterSpec("lora", rank=3, alpha=7.0),
}
SMALLER = {
    "one column": AdapterSpec("kron_lora", rank=2, alpha=3.0, d_a1=2, d_a2=1),
    "no mixing": AdapterSpec("kron_lora", rank=2, alpha=3.0, d_a1=1, d_a2=1),
    "larger rank": AdapterSpec("lora", rank=5, alpha=2.0),
}
ENCODINGS = ("fp32", "fp16", "int8", "int4")
BLOCK = 64
"""Elements with one scale in int8 and int4."""

WORDS = [
    "who",
    "wrote",
    "the",
    "play",
    "what",
    "is",
    "a",
    "pipe",
    "red",
    "green",
    "blue",
    "cat",
    "dog",
    "one",
    "two",
]


@dataclass(frozen=True)
class Exported:
    backbone: nn.Module
    graph: ModelProto


@dataclass(frozen=True)
class Written:
    """A bundle, and what it was made from."""

    folder: Path
    base: Base
    model: nn.Module
    adapter: AdapterFile
    heads: dict[str, HeadFile]
    steps: list[str]


def tiny_backbone(family: str) -> nn.Module:
    torch.manual_seed(7)
    backbone = AutoModel.from_config(CONFIGS[family])
    if getattr(backbone, "pooler", None) is not None:
        backbone.pooler = None
    return backbone.eval()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate([*special, *WORDS])}, unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=64,
    )


def tiny_base() -> Base:
    backbone = tiny_backbone("bert")
    return Base("tiny-bert", backbone, tiny_tokenizer(), fingerprint(backbone))


def with_adapter(
    backbone: nn.Module, spec: AdapterSpec, base: str, seed: int
) -> tuple[nn.Module, AdapterFile]:
    """A copy of the backbone with a random adapter attached (no factor is zero), and the adapter."""
    return _filled(attach(copy.deepcopy(backbone), spec), base, seed)


def with_mixed_adapter(backbone: nn.Module, base: str, seed: int) -> tuple[nn.Module, AdapterFile]:
    """Like `with_adapter`, but neighbouring layers have adapters of different kinds and sizes."""
    layouts = [
        adapter_layout(attach(copy.deepcopy(backbone), spec), base)
        for spec in (*SPECS.values(), *SMALLER.values())
    ]
    modules = tuple(
        choices[number % len(choices)]
        for number, choices in enumerate(zip(*(layout.modules for layout in layouts), strict=True))
    )
    return _filled(attach_layout(copy.deepcopy(backbone), AdapterLayout(base, modules)), base, seed)


def _filled(model: nn.Module, base: str, seed: int) -> tuple[nn.Module, AdapterFile]:
    generator = torch.Generator().manual_seed(seed)
    for _, layer in adapted_layers(model):
        for factor in layer.factors().values():
            nn.init.normal_(factor, std=0.3, generator=generator)
    return model.eval(), AdapterFile(adapter_state(model), adapter_layout(model, base), "tiny")


def another_adapter(adapter: AdapterFile, seed: int) -> AdapterFile:
    """Other numbers in the same layout."""
    rng = np.random.default_rng(seed)
    state = {name: rng.normal(0, 0.3, v.shape).astype(np.float32) for name, v in adapter.state.items()}
    return replace(adapter, state=state)


@torch.no_grad()
def torch_features(
    backbone: nn.Module, layout: AdapterLayout, state: State, ids: torch.Tensor, mask: torch.Tensor
) -> np.ndarray:
    """Of the bare backbone with these factors attached."""
    model = attach_layout(copy.deepcopy(backbone), layout)
    load_adapter_state(model, state)
    return text_features(model.eval(), ids, mask).numpy()


def random_head(
    task: str, labels: tuple[str, ...], contract: str, *, kind: str = "classification", hidden: int = HIDDEN
) -> HeadFile:
    rng = np.random.default_rng(sum(map(ord, task)))
    outputs = len(labels) or 1
    weight = rng.standard_normal((outputs, hidden)).astype(np.float32)
    bias = rng.standard_normal(outputs).astype(np.float32)
    return HeadFile(weight, bias, task, kind, labels, contract)


def random_tokens(batch: int, sequence: int, pad_id: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask, with padding in all rows but the first."""
    generator = torch.Generator().manual_seed(batch * 100 + sequence)
    ids = torch.randint(4, 60, (batch, sequence), generator=generator)
    lengths = torch.randint(1, sequence + 1, (batch,), generator=generator)
    lengths[0] = sequence
    mask = (torch.arange(sequence) < lengths[:, None]).long()
    return torch.where(mask.bool(), ids, pad_id or 0), mask


@torch.no_grad()
def torch_logits(model: nn.Module, head: HeadFile, ids: torch.Tensor, mask: torch.Tensor) -> np.ndarray:
    features = text_features(model, ids, mask).numpy()
    return features @ head.weight.T + head.bias


def torch_answers(
    model: nn.Module, head: HeadFile, base: Base, texts: list[str], max_length: int
) -> np.ndarray:
    """Logits with the tokenizer as `transformers` runs it."""
    tokens = base.tokenizer(texts, padding=True, truncation=True, max_length=max_length, return_tensors="pt")
    return torch_logits(model, head, tokens["input_ids"], tokens["attention_mask"])


# A slot, read as docs/formats.md says and not as the code does.

Arrays = Mapping[str, npt.NDArray[np.generic]]


def slot_numbers(arrays: Arrays, encoding: str, exact_size: int) -> tuple[np.ndarray, np.ndarray]:
    """What was encoded (with its padding), and the exact values, float64."""
    slot = arrays["slot"]
    if encoding in ("fp32", "fp16"):
        numbers = slot.astype(np.float64)
        return numbers[: len(numbers) - exact_size], numbers[len(numbers) - exact_size :]
    floats = arrays["slot_floats"].astype(np.float64)
    scales, exact = floats[: len(floats) - exact_size], floats[len(floats) - exact_size :]
    if encoding == "int8":
        codes = [int(code) for code in slot]
    else:
        codes = [int(byte) % 16 - 8 for byte in slot] + [int(byte) // 16 - 8 for byte in slot]
    return np.array([code * scales[i // BLOCK] for i, code in enumerate(codes)]), exact


def decoded_state(
    arrays: Arrays, groups: Sequence[Sequence[str]], layout: AdapterLayout, encoding: str
) -> State:
    """The factors that are in a slot, as an adapter's state."""
    modules = {module.path: module for module in layout.modules}
    shapes = {path: {f.name: f.shape for f in module.factors} for path, module in modules.items()}
    kron = [path for group in groups for path in group if modules[path].kind == "kron_lora"]
    sizes = [int(np.prod(shapes[path]["A"])) for path in kron]
    coded, exact = slot_numbers(arrays, encoding, sum(sizes))
    state = {}

    def take(rows: int, columns: int) -> np.ndarray:
        nonlocal coded
        taken, coded = coded[: rows * columns], coded[rows * columns :]
        return taken.reshape(rows, columns)

    names = {"kron_lora": ("B2", "B1"), "lora": ("lora_A", "lora_B")}
    for group in groups:
        for path in group:
            left, _ = names[modules[path].kind]
            state[f"{path}.{left}"] = take(*shapes[path][left])
        for path in group:
            _, right = names[modules[path].kind]
            scale = 1 if modules[path].kind == "kron_lora" else modules[path].scale
            state[f"{path}.{right}"] = take(*reversed(shapes[path][right])).T / scale
    assert not coded.any()  # what is left is padding
    for path, end, size in zip(kron, np.cumsum(sizes, dtype=int), sizes, strict=True):
        d_a2, d_a1 = shapes[path]["A"]
        state[f"{path}.A"] = exact[end - size : end].reshape(d_a1, d_a2).T / modules[path].scale
    return {name: np.ascontiguousarray(values, np.float32) for name, values in state.items()}


# Graphs.

Run = Callable[..., np.ndarray]


def session_of(model: ModelProto) -> Run:
    """A checked graph as a function of its inputs; returns its first output."""
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return lambda **inputs: session.run(None, inputs)[0]


def with_slot(graph: ModelProto, layout: AdapterLayout, encoding: str) -> tuple[Run, SlotLayout]:
    """The graph with a slot, and what is where in it."""
    model = copy_model(graph)
    slot = insert_slot(model, layout, encoding)
    return session_of(model), slot


def with_slot_and_head(graph: ModelProto, layout: AdapterLayout, encoding: str) -> tuple[Run, SlotLayout]:
    """The graph of a bundle, on a base of width `HIDDEN`."""
    model = copy_model(graph)
    slot = insert_slot(model, layout, encoding)
    insert_head(model, HIDDEN)
    return session_of(model), slot


def rows_of(*adapters: Arrays) -> dict[str, npt.NDArray[np.generic]]:
    """The graph's inputs for these adapters, one per row."""
    return {name: np.stack([arrays[name] for arrays in adapters]) for name in adapters[0]}


def head_input(*heads: HeadFile) -> np.ndarray:
    """The graph's input `head`, (heads, outputs, hidden + 1), for heads with as many outputs."""
    return np.stack([np.column_stack([head.weight, head.bias]) for head in heads])


def assert_near(actual: np.ndarray, expected: np.ndarray, tolerance: float = 1e-4) -> None:
    """No difference is larger than `tolerance` times the largest number."""
    assert actual.shape == expected.shape
    difference = np.abs(actual - expected).max()
    assert difference <= tolerance * np.abs(expected).max()


# Graphs by hand: x (batch, 4), a layer "dense" with d_out = 6, perhaps a layer "second" with d_out = 8.

_RNG = np.random.default_rng(0)
W, b, V, X = (_RNG.standard_normal(shape).astype(np.float32) for shape in ((6, 4), (6,), (8, 6), (7, 4)))
KRON = ModuleLayout(
    "dense",
    "kron_lora",
    2.5,
    (6, 4),
    (TensorLayout("A", (3, 2)), TensorLayout("B1", (2, 5)), TensorLayout("B2", (5, 2))),
)


def layer(path: str, operator: str, *inputs: str, output: str, **attributes: int) -> NodeProto:
    """A node that multiplies with the weight of a layer."""
    node = helper.make_node(operator, inputs, [output], **attributes)
    node.metadata_props.add(key=LAYER, value=path)
    return node


def by_hand(
    nodes: list[NodeProto],
    widths: dict[str, int],
    *,
    leading: Sequence[str] = ("batch",),
    **weights: np.ndarray,
) -> ModelProto:
    """A graph from x to features; `widths` of all that is noted down in it, with the `leading` axes."""

    def values(name: str, width: int) -> ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [*leading, width])

    graph = helper.make_graph(
        nodes,
        "by-hand",
        [values("x", 4)],
        [values("features", widths["features"])],
        [numpy_helper.from_array(weight, name) for name, weight in weights.items()],
        value_info=[values(name, width) for name, width in widths.items() if name != "features"],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def random_state(layout: AdapterLayout, seed: int = 1) -> State:
    """Standard normal factors."""
    rng = np.random.default_rng(seed)
    return {t.name: rng.standard_normal(t.shape).astype(np.float32) for t in layout.tensors}


def delta(module: ModuleLayout, state: State) -> np.ndarray:
    """ΔW, (d_out, d_in), by torch.kron in float64."""
    factors = [torch.tensor(state[module.tensor_name(f.name)], dtype=torch.float64) for f in module.factors]
    if module.kind == "kron_lora":
        A, B1, B2 = factors
        product = torch.kron(A, B1 @ B2)
    else:
        lora_A, lora_B = factors
        product = lora_B @ lora_A
    return (module.scale * product).numpy()


# Adapters for a slot that needs no base: two layers, and a width of 8.

SMALL_HIDDEN = 8
SMALL = AdapterLayout(
    "base",
    (
        KRON,
        ModuleLayout(
            "second", "lora", 0.5, (8, 6), (TensorLayout("lora_A", (2, 6)), TensorLayout("lora_B", (8, 2)))
        ),
    ),
)


def small_slot(encoding: str = "fp32") -> SlotLayout:
    return SlotLayout(SMALL, (("dense",), ("second",)), encoding)


def small_adapter(seed: int) -> AdapterFile:
    return AdapterFile(random_state(SMALL, seed), SMALL, "base")


def small_heads() -> list[HeadFile]:
    """Of three labels, of two without names, and of choices."""
    spam = random_head("spam", ("no", "yes"), SMALL.contract, hidden=SMALL_HIDDEN)
    return [
        random_head("colour", ("red", "green", "blue"), SMALL.contract, hidden=SMALL_HIDDEN),
        replace(spam, labels=()),
        random_head("trivia", (), SMALL.contract, kind="multiple_choice", hidden=SMALL_HIDDEN),
    ]


def small_device_adapter(name: str, seed: int, encoding: str = "fp32") -> DeviceAdapter:
    return device_adapter(name, small_adapter(seed), small_heads(), small_slot(encoding), SMALL_HIDDEN)


def assert_same_adapter(actual: DeviceAdapter, expected: DeviceAdapter) -> None:
    """Same numbers in the same dtypes for the same tasks."""
    assert (actual.contract, actual.slot_hash) == (expected.contract, expected.slot_hash)
    assert actual.arrays.keys() == expected.arrays.keys()
    for name, array in expected.arrays.items():
        assert actual.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(actual.arrays[name], array)
    assert list(actual.tasks) == list(expected.tasks)
    for mine, head in zip(actual.heads, expected.heads, strict=True):
        assert (mine.name, mine.kind, mine.labels) == (head.name, head.kind, head.labels)
        assert mine.weights.dtype == head.weights.dtype
        np.testing.assert_array_equal(mine.weights, head.weights)
