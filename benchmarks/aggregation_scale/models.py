"""The adapters of Mistral-7B: Kron-LoRA's layout, and what a client of a plain Flower app sends instead."""

from __future__ import annotations

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from transformers import AutoConfig, AutoModelForCausalLM

from fedkron.adapters import AdapterSpec, adapter_layout, attach
from fedkron.layout import AdapterLayout

RANK = 8
WEIGHT = "num-examples"


def mistral(layers: int) -> AdapterLayout:
    """Kron-LoRA of rank 8 on all linear layers, lm_head too; no weight of the model is ever allocated."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("mistral", num_hidden_layers=layers))
    return adapter_layout(attach(model, AdapterSpec(rank=RANK)), base="")


def lora_reply(layout: AdapterLayout) -> RecordDict:
    """LoRA of rank 8 on the same layers, as float32 arrays."""
    rng = np.random.default_rng(0)
    arrays = {}
    for module in layout.modules:
        d_out, d_in = module.weight_shape
        arrays[f"{module.path}.lora_A"] = Array(rng.standard_normal((RANK, d_in), np.float32))
        arrays[f"{module.path}.lora_B"] = Array(rng.standard_normal((d_out, RANK), np.float32))
    return RecordDict({"arrays": ArrayRecord(arrays), "metrics": MetricRecord({WEIGHT: 12})})
