"""Peer: Optimum's export of a model that has the adapter folded into its weights."""

from __future__ import annotations

import copy
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.edge_peers.cases import Ids, Logits
from fedkron.adapters import attach_layout, load_adapter_state, merge
from fedkron.base import FEATURE_NORM, Base
from fedkron.exchange import AdapterFile, HeadFile

SCRIPT = Path(__file__).with_name("optimum_export.py")

HOW_TO = (
    "Optimum: left out. optimum-onnx needs an older transformers than fedkron, in an environment of its own: "
    "python -m venv optimum; optimum/bin/pip install torch 'optimum-onnx[onnxruntime]==0.1.0' "
    "'transformers<4.58' accelerate onnxscript; then --optimum optimum/bin/python"
)


def export(python: Path, folder: Path, base: Base, adapter: AdapterFile) -> Path:
    """Fold the adapter in, save the model as transformers does, have Optimum export it; the graph's path.

    Raises `RuntimeError` with what Optimum said when it fails.
    """
    model = attach_layout(copy.deepcopy(base.backbone), adapter.layout)
    load_adapter_state(model, adapter.state)
    merge(model)
    source, target = folder / "saved", folder / "optimum"
    model.save_pretrained(source)
    base.tokenizer.save_pretrained(source)
    command = [str(python), str(SCRIPT), str(source), str(target)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{python} could not export with optimum-onnx:\n{done.stderr[-2000:]}\n{HOW_TO}")
    return target / "model.onnx"


@dataclass(frozen=True)
class PooledAfterwards:
    """The exported graph ends with hidden states: mean over the tokens, norm and head are numpy."""

    session: Any
    head: HeadFile

    def __call__(self, feeds: Mapping[str, Ids]) -> Logits:
        """Logits (batch, outputs)."""
        ids, mask = feeds["input_ids"], feeds["attention_mask"]
        given = {**feeds, "token_type_ids": np.zeros_like(ids)}
        hidden = self.session.run(None, {i.name: given[i.name] for i in self.session.get_inputs()})[0]
        weights = mask[..., None].astype(np.float32)
        pooled = (hidden * weights).sum(1) / weights.sum(1)
        features = FEATURE_NORM * pooled / np.linalg.norm(pooled, axis=-1, keepdims=True)
        logits: Logits = features @ self.head.weight.T + self.head.bias
        return logits
