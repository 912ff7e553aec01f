"""From images to the numbers that an image base reads, with Pillow and numpy alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from fedkron.edge.texts import Feeds
from fedkron.errors import BundleError, TaskError

try:
    from PIL import Image
except ImportError as error:
    raise ImportError("images need Pillow: pip install 'fedkron[vision]'") from error

BATCH = 8
"""Images that are run together, at most: more would take memory, not save time."""

Pixels = npt.NDArray[np.uint8]
"""An image as an array: (height, width, 3) RGB, (height, width, 4) RGBA, or (height, width) grey."""


@dataclass(frozen=True)
class ImageInput:
    """How an image base wants its images: scaled to `size` (height, width), then per channel
    (value · `rescale_factor` − `mean`) / `std`.

    `resample` is the lower-case name of a filter of Pillow. Raises `BundleError` for values that make no
    sense.
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resample: str = "bilinear"
    rescale_factor: float = 1 / 255

    kind: ClassVar[str] = "image"
    names: ClassVar[tuple[str, ...]] = ("pixel_values",)

    def __post_init__(self) -> None:
        if len(self.size) != 2 or min(self.size) < 1:
            raise BundleError(f"image size {list(self.size)} is not a height and a width in pixels")
        if len(self.mean) != 3 or len(self.std) != 3:
            raise BundleError(f"mean {list(self.mean)} and std {list(self.std)} need a value per RGB channel")
        if not all(map(math.isfinite, (*self.mean, *self.std, self.rescale_factor))) or 0 in self.std:
            raise BundleError(
                f"mean {list(self.mean)}, std {list(self.std)} and rescale factor {self.rescale_factor} "
                "must be finite, std not zero"
            )
        if self.resample not in _FILTERS:
            raise BundleError(f"resample filter {self.resample!r} is unknown: use {', '.join(_FILTERS)}")

    @classmethod
    def of_processor(cls, processor: Any) -> Self:  # noqa: ANN401
        """The settings of an image processor of `transformers`.

        Two images are put through both. Raises `BundleError` for a processor that does anything else than
        scaling to a fixed size and normalizing (a centre crop, padding).
        """
        name = type(processor).__name__
        size = processor.size or {}
        height, width = (size.get(key) for key in ("height", "width"))
        if not processor.do_resize or height is None or width is None:
            raise _uncovered(name, f"do_resize={processor.do_resize}, size={dict(size)}")
        if getattr(processor, "do_center_crop", False):
            raise _uncovered(name, "it crops the centre out of each image")
        mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else (0, 1)
        resample = Image.Resampling.BILINEAR if processor.resample is None else processor.resample
        settings = cls(
            size=(height, width),
            mean=_per_channel(mean),
            std=_per_channel(std),
            resample=Image.Resampling(resample).name.lower(),
            rescale_factor=processor.rescale_factor if processor.do_rescale else 1.0,
        )
        settings._check_against(processor)
        return settings

    def to_json(self) -> dict[str, Any]:
        """The manifest's `input`."""
        listed = {"size": list(self.size), "mean": list(self.mean), "std": list(self.std)}
        return {"kind": self.kind, "names": list(self.names), **asdict(self), **listed}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Inverse of `to_json`; raises `KeyError`, `TypeError` or `ValueError` for anything else."""
        height, width = content["size"]
        settings = cls(
            size=(int(height), int(width)),
            mean=_per_channel(content["mean"]),
            std=_per_channel(content["std"]),
            resample=str(content["resample"]),
            rescale_factor=float(content["rescale_factor"]),
        )
        if settings.to_json() != content:
            raise ValueError(f"input {content!r} is not that of an image base")
        return settings

    def _check_against(self, processor: Any) -> None:  # noqa: ANN401
        rng = np.random.default_rng(0)
        height, width = self.size
        # Scaled down in one direction and up in the other: a crop or a kept aspect ratio shows.
        shapes = [(2 * height + 1, width // 2 + 1, 3), (height // 2 + 1, 2 * width + 1, 3)]
        images = [rng.integers(0, 256, shape, np.uint8) for shape in shapes]
        theirs = np.asarray(processor(images, return_tensors="np")["pixel_values"])
        ours = pixel_values(images, self)
        # Other backends of transformers than Pillow may round a resized pixel to its neighbour.
        rounding = 2 * abs(self.rescale_factor) / min(map(abs, self.std))
        if theirs.shape != ours.shape or np.abs(theirs - ours).max() > rounding:
            raise _uncovered(type(processor).__name__, "it gives other pixel values")


def pixel_values(images: Sequence[Image.Image | Pixels], settings: ImageInput) -> npt.NDArray[np.float32]:
    """What the base reads, float32 (n, 3, height, width), the same as `transformers` has it with Pillow.

    Grey images become RGB; what is transparent becomes white. The orientation that a camera notes down in
    a photograph is not looked at (`PIL.ImageOps.exif_transpose` applies it). Raises `TaskError` for
    something that is not an image of 8 bits per channel.
    """
    _check_listed(images)
    height, width = settings.size
    resample = _FILTERS[settings.resample]
    resized = [np.asarray(_rgb(image).resize((width, height), resample)) for image in images]
    pixels = np.stack(resized) if resized else np.empty((0, height, width, 3), np.uint8)
    # A pixel has 256 values: the arithmetic is done once for each. Rounded where transformers rounds.
    scaled = (np.arange(256) * settings.rescale_factor).astype(np.float32)
    channels = [
        ((scaled - np.float32(mean)) / np.float32(std))[pixels[..., channel]]
        for channel, (mean, std) in enumerate(zip(settings.mean, settings.std, strict=True))
    ]
    return np.stack(channels, axis=1)


def image_batches(
    settings: ImageInput, images: Sequence[Image.Image | Pixels]
) -> Iterator[tuple[list[int], Feeds]]:
    """Which images are run together, and the graph's input for them. Raises like `pixel_values`."""
    _check_listed(images)
    for start in range(0, len(images), BATCH):
        part = images[start : start + BATCH]
        yield list(range(start, start + len(part))), {settings.names[0]: pixel_values(part, settings)}


_FILTERS = {filter.name.lower(): filter for filter in Image.Resampling}


def _check_listed(images: object) -> None:
    if isinstance(images, (Image.Image, np.ndarray, str)):
        raise TaskError(f"{type(images).__name__} stands alone: give a list of images")


def _rgb(image: Image.Image | Pixels) -> Image.Image:
    if isinstance(image, np.ndarray):
        image = _of_array(image)
    if not isinstance(image, Image.Image):
        raise TaskError(f"{type(image).__name__} is not an image: give a PIL image or a uint8 array")
    if image.mode[0] in "IF":
        raise TaskError(f"an image of mode {image.mode} has more than 8 bits per channel: convert it first")
    if image.has_transparency_data:
        colours = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours)
    return image.convert("RGB")


def _of_array(array: npt.NDArray[Any]) -> Image.Image:
    channels = array.shape[2:]
    if (
        array.dtype != np.uint8
        or array.ndim not in (2, 3)
        or channels not in ((), (3,), (4,))
        or not array.size
    ):
        raise TaskError(
            f"an array of {array.dtype} {list(array.shape)} is not an image: give uint8 (height, width, 3)"
        )
    return Image.fromarray(array)


def _per_channel(values: Any) -> tuple[float, float, float]:  # noqa: ANN401
    red, green, blue = (float(value) for value in np.broadcast_to(np.asarray(values, np.float64), 3))
    return red, green, blue


def _uncovered(name: str, reason: str) -> BundleError:
    return BundleError(
        f"image processor {name} does not run on a device ({reason}): use a base whose processor only "
        "scales to a fixed height and width and normalizes, or set its size and switch the rest off"
    )
