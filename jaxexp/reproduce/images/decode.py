"""Image files to arrays of one size, bit for bit as torchvision's transforms make them.

This calls Pillow, as those transforms do, rather than torchvision: it gives the same bits at the
same speed, but torchvision would import PyTorch (2.5 seconds and 330 MB; Pillow takes 0.03
seconds), which reading images, boosted trees and predictions do not need. Pillow is imported when
the first image is read.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import jaxexp as jx

if TYPE_CHECKING:
    from PIL import Image


class BrokenImageError(Exception):
    """What is wrong with an image file and what was expected; the caller adds the file's name."""


@dataclass(frozen=True)
class Transform:
    """Resize, then crop the centre; pixels stay RGB with 8 bits per channel.

    Attributes:
        resize: as in `torchvision.transforms.Resize`: the pixels of the shorter side (the longer
            side keeps the aspect ratio, rounded down), or (height, width). Bilinear, antialiased.
        crop: as in `torchvision.transforms.CenterCrop`: the side of the central square in pixels,
            padded with black where the image is smaller; None for no crop.

    Raises UserError for sizes below one pixel, and if results could differ in shape.
    """

    resize: int | tuple[int, int]
    crop: int | None = None

    def __post_init__(self) -> None:
        """Check the sizes."""
        sides = self.resize if isinstance(self.resize, tuple) else (self.resize, self.resize)
        if len(sides) != 2 or not all(_is_size(side) for side in sides):
            expected = "a whole number from 1, or two for (height, width)"
            raise jx.UserError(f"resize={self.resize!r}: expected {expected}")
        if self.crop is not None and not _is_size(self.crop):
            raise jx.UserError(f"crop={self.crop!r}: expected a whole number from 1, or None")
        if self.crop is None and isinstance(self.resize, int):
            raise jx.UserError(
                f"resize={self.resize} without a crop: images could differ in shape, "
                "expected a crop too, or (height, width)"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every result."""
        if self.crop is not None:
            return self.crop, self.crop, 3
        assert isinstance(self.resize, tuple)  # checked in __post_init__
        return *self.resize, 3

    def __call__(self, image: "Image.Image") -> np.ndarray:
        """The RGB image as uint8 [height, width, 3]; raises BrokenImageError if far too narrow."""
        from PIL import Image

        width, height = self._resized(*image.size)
        if width * height > _max_pixels():
            raise BrokenImageError(
                f"would be resized from {image.width}×{image.height} to {width}×{height} pixels, "
                "expected an image less narrow"
            )
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        if self.crop is not None:
            left, top = _margin(width, self.crop), _margin(height, self.crop)
            image = image.crop((left, top, left + self.crop, top + self.crop))  # black outside
        return np.asarray(image)

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        if isinstance(self.resize, tuple):
            return self.resize[1], self.resize[0]
        longer = int(self.resize * max(width, height) / min(width, height))
        return (self.resize, longer) if width <= height else (longer, self.resize)


def read_image(path: Path) -> "Image.Image":
    """An image file as RGB with 8 bits per channel.

    Like torchvision's loader, this drops the alpha channel, takes the first frame, and ignores the
    EXIF orientation. It keeps the upper 8 bits of 16-bit grey levels, as Pillow does for 16-bit
    colours; torchvision clips them to white.

    Raises:
        BrokenImageError: the file cannot be read, is not an image, is truncated or damaged, or has
            more pixels than Pillow considers safe (`PIL.Image.MAX_IMAGE_PIXELS`).
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with open(path, "rb") as file, Image.open(file) as image:
            if image.width * image.height > _max_pixels():
                raise Image.DecompressionBombError
            image.load()
            return _to_rgb(image)
    except (BrokenImageError, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise BrokenImageError(f"has more pixels than {_max_pixels():,}, the limit") from None
    except UnidentifiedImageError:
        raise BrokenImageError("is not an image, expected JPEG or PNG") from None
    except Exception as error:  # decoders raise errors of any kind on damaged files
        reason = str(error) or type(error).__name__
        raise BrokenImageError(f"cannot be decoded ({reason}), expected a whole image") from None


def _to_rgb(image: "Image.Image") -> "Image.Image":
    from PIL import Image

    if image.mode.startswith("I"):  # convert() would clip at 255
        levels_HxW = np.asarray(image)
        if levels_HxW.min() < 0 or levels_HxW.max() >= 2**16:
            raise BrokenImageError("has 32-bit grey levels, expected 8 or 16 bits")
        image = Image.fromarray((levels_HxW >> 8).astype(np.uint8))
    elif image.mode == "F":
        raise BrokenImageError("has floating-point grey levels, expected 8 or 16 bits")
    return image if image.mode == "RGB" else image.convert("RGB")


def _margin(size: int, crop: int) -> int:
    """Pixels cut off (negative: added) at the left or top, each rounded as in torchvision."""
    return round((size - crop) / 2) if size >= crop else -((crop - size) // 2)


def _max_pixels() -> float:
    from PIL import Image

    return Image.MAX_IMAGE_PIXELS or math.inf


def _is_size(pixels: object) -> bool:
    return isinstance(pixels, int) and not isinstance(pixels, bool) and pixels >= 1
