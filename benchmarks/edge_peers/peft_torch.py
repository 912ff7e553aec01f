"""Peer: PEFT in torch, as most run an adapter today."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

from benchmarks.edge_peers.cases import Batch, Logits
from fedkron.base import Base, text_features
from fedkron.exchange import AdapterFile, HeadFile


def model_with(base: Base, adapters: Sequence[AdapterFile]) -> Any:  # noqa: ANN401
    """A PEFT model with our plain LoRAs, named "0", "1", …; the first is active."""
    model = None
    for number, adapter in enumerate(adapters):
        modules = adapter.layout.modules
        rank = modules[0].factors[0].shape[0]
        config = LoraConfig(
            r=rank, lora_alpha=rank * modules[0].scale, target_modules=[module.path for module in modules]
        )
        if model is None:
            model = get_peft_model(copy.deepcopy(base.backbone), config, adapter_name=str(number))
        else:
            model.add_adapter(str(number), config)
        state = {
            f"base_model.model.{module.path}.{factor.name}.weight": torch.from_numpy(
                adapter.state[module.tensor_name(factor.name)]
            )
            for module in modules
            for factor in module.factors
        }
        set_peft_model_state_dict(model, state, adapter_name=str(number))
    assert model is not None, "at least one adapter"
    return model.eval()


def runner(model: Any, head: HeadFile) -> Callable[[Batch], Logits]:  # noqa: ANN401
    """A call of a torch model, from a batch to logits."""
    weight, bias = torch.from_numpy(head.weight), torch.from_numpy(head.bias)

    @torch.inference_mode()
    def run(inputs: Batch) -> Logits:
        features = text_features(model, torch.from_numpy(inputs.ids), torch.from_numpy(inputs.mask))
        logits: Logits = torch.nn.functional.linear(features, weight, bias).numpy()
        return logits

    return run
