"""The real thing: MiniLM with a Kron-LoRA adapter on all layers, on real questions."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from edge_cases import random_head, with_adapter

from fedkron.adapters import AdapterSpec
from fedkron.base import Base, load_base
from fedkron.demo import resolve_task
from fedkron.edge.bundle import write_bundle
from fedkron.edge.check import check_against_torch
from fedkron.edge.runtime import Bundle

TRICKY = [
    "",
    "naïve café ☂️ 你好",
    "x" * 300,
    "word " * 200,
    "[MASK] [CLS] <s> http://example.org?q=1",
    "\n\t",
]


@pytest.fixture(scope="module")
def minilm() -> Base:
    return load_base("demo:all-minilm-l6-v2")


def test_minilm_gives_the_same_answers_in_onnx_as_in_torch(minilm: Base, tmp_path: Path) -> None:
    questions = (resolve_task("trec") / "test.jsonl").read_text(encoding="utf-8").splitlines()[:90]
    texts = [json.loads(question)["text"] for question in questions] + TRICKY
    _, adapter = with_adapter(minilm.backbone, AdapterSpec(), minilm.fingerprint, seed=1)
    # Strong enough to change answers, weak enough to keep the base alive, as after training.
    adapter.state.update({n: t * 0.1 for n, t in adapter.state.items() if n.endswith("B1")})
    labels = ("abbreviation", "description", "entity", "human", "location", "number")
    head = random_head("trec", labels, adapter.layout.contract, hidden=minilm.hidden_size)
    head = replace(head, weight=head.weight * 0.3)  # logits of about 10, as after training
    folder = write_bundle(tmp_path / "minilm", minilm, adapter, [head], report=lambda _: None)

    for agreement in check_against_torch(folder, minilm, adapter, [head], texts):
        assert agreement.difference < 1e-4
        assert agreement.magnitude > 1
        assert agreement.same_answers == 1.0
    encoded = minilm.tokenizer(texts, truncation=True, max_length=64)["input_ids"]
    assert Bundle.open(folder).tokenize(texts) == encoded
