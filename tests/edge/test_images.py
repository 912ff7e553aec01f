"""Images to pixel values: what transformers computes, without it; and bases that read them."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from edge_cases import tiny_backbone, tiny_tokenizer
from PIL import Image
from transformers import AutoModel, ConvNextConfig, ViTConfig
from transformers.models.beit.image_processing_pil_beit import BeitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil
from transformers.models.mobilevit.image_processing_pil_mobilevit import MobileViTImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from fedkron.base import Base, fingerprint, image_features, load_image_base
from fedkron.edge.features import export_image_features
from fedkron.edge.images import BATCH, ImageInput, image_batches, pixel_values
from fedkron.errors import BundleError, ConfigError, TaskError

SIZE = {"height": 24, "width": 20}
SETTINGS = ImageInput((24, 20), (0.5, 0.4, 0.3), (0.5, 0.25, 0.2))
SHAPES = [(24, 20), (7, 90), (301, 33), (1, 1), (25, 19)]
"""Heights and widths: as wanted, scaled up, down, and either way."""


def photo(height: int, width: int, mode: str = "RGB") -> Image.Image:
    """Noise on a slope, so that filters differ."""
    rng = np.random.default_rng(height * 1000 + width)
    slope = np.linspace(0, 200, height)[:, None, None] + np.linspace(0, 40, width)[None, :, None]
    array = (slope + rng.integers(0, 16, (height, width, 4))).astype(np.uint8)
    return Image.fromarray(array, "RGBA").convert(mode)


def as_transformers(processor: Any, images: list[Any]) -> np.ndarray:  # noqa: ANN401
    return processor(images, return_tensors="np")["pixel_values"]


@pytest.mark.parametrize(
    "processor",
    [
        ViTImageProcessorPil(size=SIZE),
        BeitImageProcessorPil(size=SIZE),
        SiglipImageProcessorPil(size=SIZE, image_std=[0.2, 0.9, 0.5]),
        ViTImageProcessorPil(size=SIZE, do_normalize=False),
        ViTImageProcessorPil(size=SIZE, do_rescale=False, image_mean=[100, 90, 80], image_std=[60, 50, 40]),
        ViTImageProcessorPil(size=SIZE, rescale_factor=1 / 127.5, image_mean=1.0, image_std=1.0),
        *(ViTImageProcessorPil(size=SIZE, resample=filter) for filter in Image.Resampling),
    ],
)
def test_pixel_values_are_those_of_transformers(processor: Any) -> None:  # noqa: ANN401
    settings = ImageInput.of_processor(processor)
    images = [photo(*shape) for shape in SHAPES]
    expected = as_transformers(processor, images)
    actual = pixel_values(images, settings)
    assert actual.shape == (len(SHAPES), 3, 24, 20)
    assert actual.dtype == np.float32
    assert actual.flags.c_contiguous
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(pixel_values([np.asarray(image) for image in images], settings), actual)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr"])
def test_other_kinds_of_images_become_rgb_on_white(mode: str) -> None:
    processor = SiglipImageProcessorPil(size=SIZE)
    images = [photo(31, 40).convert(mode) if mode == "PA" else photo(31, 40, mode)]
    if mode == "P":
        images[0].info["transparency"] = 3
    expected = as_transformers(processor, images)
    np.testing.assert_allclose(
        pixel_values(images, ImageInput.of_processor(processor)), expected, rtol=1e-6, atol=1e-6
    )


def test_what_is_transparent_is_white_and_grey_arrays_are_images_too() -> None:
    clear = np.zeros((5, 6, 4), np.uint8)
    grey = np.full((5, 6), 255, np.uint8)
    values = pixel_values([clear, grey], replace(SETTINGS, mean=(0, 0, 0), std=(1, 1, 1)))
    np.testing.assert_allclose(values, np.ones((2, 3, 24, 20)), rtol=1e-6)


def test_batches_have_every_image_once_and_in_order() -> None:
    images = [photo(3, 4 + index) for index in range(2 * BATCH + 1)]
    batches = list(image_batches(SETTINGS, images))
    assert [len(rows) for rows, _ in batches] == [BATCH, BATCH, 1]
    assert [row for rows, _ in batches for row in rows] == list(range(len(images)))
    joined = np.concatenate([feeds["pixel_values"] for _, feeds in batches])
    np.testing.assert_array_equal(joined, pixel_values(images, SETTINGS))


def test_no_images_are_an_empty_batch_or_none() -> None:
    assert pixel_values([], SETTINGS).shape == (0, 3, 24, 20)
    assert list(image_batches(SETTINGS, [])) == []


@pytest.mark.parametrize("alone", [photo(4, 4), np.asarray(photo(4, 4)), "cat.png"])
def test_an_image_alone_is_refused(alone: Any) -> None:  # noqa: ANN401
    with pytest.raises(TaskError, match="stands alone: give a list"):
        pixel_values(alone, SETTINGS)
    with pytest.raises(TaskError, match="stands alone: give a list"):
        next(image_batches(SETTINGS, alone))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((3, 24, 20), np.uint8), r"uint8 \[3, 24, 20\]"),
        (np.zeros((24, 20, 3), np.float32), r"float32 \[24, 20, 3\]"),
        (np.zeros((0, 20, 3), np.uint8), r"uint8 \[0, 20, 3\]"),
        (np.zeros((2, 24, 20, 3), np.uint8), r"uint8 \[2, 24, 20, 3\]"),
        (np.zeros(20, np.uint8), r"uint8 \[20\]"),
        (Image.new("I;16", (8, 8)), "mode I;16"),
        (Image.new("F", (8, 8)), "mode F"),
        ("cat.png", "str is not an image"),
    ],
)
def test_what_is_no_image_of_8_bits_is_refused(image: Any, message: str) -> None:  # noqa: ANN401
    with pytest.raises(TaskError, match=message):
        pixel_values([photo(4, 4), image], SETTINGS)


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        (DeiTImageProcessorPil(), "DeiT.*centre"),
        (CLIPImageProcessorPil(), "CLIP.*shortest_edge"),
        (ConvNextImageProcessorPil(), "ConvNext.*shortest_edge"),
        (ViTImageProcessorPil(size=SIZE, do_resize=False), "do_resize=False"),
        # Steps that no setting of ours stands for: the numbers differ.
        (ViTImageProcessorPil(size=SIZE, do_pad=True, pad_size={"height": 30, "width": 30}), "other pixel"),
        (MobileViTImageProcessorPil(size=SIZE, do_center_crop=False), "MobileViT.*other pixel"),
    ],
)
def test_a_processor_with_other_steps_is_refused(processor: Any, message: str) -> None:  # noqa: ANN401
    with pytest.raises(BundleError, match=message):
        ImageInput.of_processor(processor)


def test_settings_survive_the_manifest() -> None:
    for settings in SETTINGS, ImageInput((1, 2), (0.1, 0, 1e-9), (1, 2, 3), "lanczos", 1.0):
        written = json.loads(json.dumps(settings.to_json()))
        assert written["kind"] == "image"
        assert written["names"] == ["pixel_values"]
        assert ImageInput.from_json(written) == settings


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"size": [0, 4]}, r"image size \[0, 4\]"),
        ({"size": [4]}, "not enough values"),
        ({"mean": [1, 2]}, "shape"),
        ({"std": [1, 0, 1]}, r"std \[1.0, 0.0, 1.0\]"),
        ({"std": [1, float("nan"), 1]}, "finite"),
        ({"resample": "fourier"}, "'fourier' is unknown: use nearest, "),
        ({"rescale_factor": float("inf")}, "rescale factor inf"),
        ({"rescale_factor": "x"}, "could not convert"),
        ({"rescale_factor": "0.5"}, "not that of an image base"),
        ({"crop": True}, "not that of an image base"),
    ],
)
def test_damaged_settings_are_refused(damage: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageInput.from_json(SETTINGS.to_json() | damage)


def test_a_device_needs_neither_torch_nor_transformers_nor_onnx() -> None:
    code = "import sys, fedkron.edge.images; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "PIL.Image" in loaded.split()
    assert not {"torch", "transformers", "onnx", "onnxruntime"} & set(loaded.split())


# Image bases.


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vit")
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    torch.manual_seed(0)
    AutoModel.from_config(ViTConfig(**size, image_size=[24, 20], patch_size=4)).save_pretrained(folder)
    ViTImageProcessorPil(size=SIZE, resample=Image.Resampling.BICUBIC).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(folder: Path) -> Base:
    return load_image_base(str(folder))


def test_an_image_base_is_loaded_like_a_text_base(base: Base, folder: Path) -> None:
    assert base.name == str(folder)
    assert base.hidden_size == 32
    assert base.tokenizer is None
    assert not base.backbone.training
    assert not any("pooler" in name for name in base.backbone.state_dict())
    assert base.fingerprint == fingerprint(base.backbone)
    assert ImageInput.of_processor(base.image_processor).resample == "bicubic"


def test_image_features_are_the_normalised_mean_of_all_tokens(base: Base, folder: Path) -> None:
    x = torch.randn(3, 3, 24, 20)
    with torch.no_grad():
        hidden = (
            AutoModel.from_pretrained(folder)(pixel_values=x).last_hidden_state.numpy().astype(np.float64)
        )
        actual = image_features(base.backbone, x).numpy()
    assert hidden.shape == (3, 31, 32)
    mean = hidden.sum(1) / 31
    np.testing.assert_allclose(actual, 10 * mean / np.linalg.norm(mean, axis=1, keepdims=True), atol=1e-5)


def test_images_give_the_features_of_torch_and_transformers_on_a_device(base: Base) -> None:
    images = [photo(*shape) for shape in SHAPES]
    values = base.image_processor(images, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = image_features(base.backbone, values).numpy()
    session = onnxruntime.InferenceSession(export_image_features(base.backbone).SerializeToString())
    ours = pixel_values(images, ImageInput.of_processor(base.image_processor))
    [actual] = session.run(None, {"pixel_values": ours})
    np.testing.assert_allclose(actual, expected, atol=5e-5)


def test_what_is_no_base_for_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing' cannot be loaded .no such folder here"):
        load_image_base(str(tmp_path / "missing"))
    tiny_backbone("bert").save_pretrained(tmp_path / "bert")
    tiny_tokenizer().save_pretrained(tmp_path / "bert")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_image_base(str(tmp_path / "bert"))
    convnext = ConvNextConfig(hidden_sizes=[4, 4, 4, 4], depths=[1, 1, 1, 1])
    AutoModel.from_config(convnext).save_pretrained(tmp_path / "convnext")
    ViTImageProcessorPil(size=SIZE).save_pretrained(tmp_path / "convnext")
    with pytest.raises(ConfigError, match=r"ConvNextModel.*row of tokens"):
        load_image_base(str(tmp_path / "convnext"))
