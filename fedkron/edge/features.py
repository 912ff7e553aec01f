"""The bare base as a graph, once per base: from token ids or pixels to the features that a head sees."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fedkron.base import image_features, text_features
from fedkron.edge.exporter import export_module
from fedkron.edge.graph import FEATURES
from fedkron.edge.texts import TextInput

if TYPE_CHECKING:
    from onnx import ModelProto


class _TextFeatures(nn.Module):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return text_features(self.backbone, input_ids, attention_mask)


class _ImageFeatures(nn.Module):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, pixel_values: Tensor) -> Tensor:
        return image_features(self.backbone, pixel_values)


def export_features(backbone: nn.Module) -> ModelProto:
    """Export a text base (float32, no adapter attached), encoder or decoder, with its weights in the model.

    Inputs `input_ids` and `attention_mask`, int64 (batch, sequence), both axes dynamic; output `features`,
    float32 (batch, hidden). Every linear layer is named as `export_module` says, which is what
    `fold_adapter` and `insert_slot` look for.
    """
    # Two tensors: the exporter would take one object for one input.
    example = tuple(torch.ones(2, 8, dtype=torch.int64) for _ in TextInput.names)
    return export_module(
        _TextFeatures(backbone),
        example,
        inputs=TextInput.names,
        outputs=[FEATURES],
        dynamic_shapes={name: {0: "batch", 1: "sequence"} for name in TextInput.names},
        backbone=backbone,
        prefix="backbone",
    )


def export_image_features(backbone: nn.Module) -> ModelProto:
    """Export a ViT-like image base (float32, no adapter attached), with its weights in the model.

    Input `pixel_values`, float32 (batch, channels, height, width), with the size that the base was trained
    on and the batch dynamic; output `features`, float32 (batch, hidden). Layers are named as in
    `export_features`.
    """
    config: Any = backbone.config
    size = config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    return export_module(
        _ImageFeatures(backbone),
        (torch.zeros(2, config.num_channels, height, width),),
        inputs=["pixel_values"],
        outputs=[FEATURES],
        dynamic_shapes={"pixel_values": {0: "batch"}},
        backbone=backbone,
        prefix="backbone",
    )
