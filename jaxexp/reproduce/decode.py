"""Image files to arrays of one size, bit for bit as torchvision's transforms make them with Pillow.

Pillow is imported when the first image is read.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxexp.base.errors import UserError

if TYPE_CHECKING:
    from PIL import Image


class BrokenImageError(Exception):
    """What is wrong with an image file, and what was expected, without the file's name."""


@dataclass(frozen=True)
class Transform:
    """Geometry alone: the result is RGB with 8 bits a channel.

    Attributes:
        resize: as in `torchvision.transforms.Resize`: the pixels of the shorter side (the longer
            one follows, rounded down), or (height, width). Bilinear, with antialiasing.
        crop: as in `torchvision.transforms.CenterCrop`: the pixels of a side of the square in the
            middle, with black where the image is smaller; None to leave the image whole.

    Raises UserError for sizes below one pixel, and where images would not all get one size.
    """

    resize: int | tuple[int, int]
    crop: int | None = None

    def __post_init__(self) -> None:
        """Check the sizes."""
        sides = self.resize if isinstance(self.resize, tuple) else (self.resize, self.resize)
        if len(sides) != 2 or not all(_is_size(side) for side in sides):
            expected = "a whole number from 1, or two for (height, width)"
            raise UserError(f"resize={self.resize!r}: expected {expected}")
        if self.crop is not None and not _is_size(self.crop):
            raise UserError(f"crop={self.crop!r}: expected a whole number from 1, or None")
        if self.crop is None and isinstance(self.resize, int):
            raise UserError(
                f"resize={self.resize} alone leaves images of many shapes: "
                "expected a crop with it, or a (height, width)"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every result."""
        if self.crop is not None:
            return self.crop, self.crop, 3
        assert isinstance(self.resize, tuple)  # __post_init__ has seen to it
        return *self.resize, 3

    def __call__(self, image: "Image.Image") -> np.ndarray:
        """The image (RGB) as uint8 [height, width, 3]; raises BrokenImageError for a sliver."""
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
    """An image file as RGB with 8 bits a channel.

    As torchvision's loader does, this drops transparency (the colours below it show), takes the
    first frame, and leaves the image as it is stored where EXIF would have it turned. Grey levels
    of 16 bits keep their upper 8, as Pillow does with colours; torchvision clips them to white.

    Raises:
        BrokenImageError: the file cannot be read, is no image, is cut off or damaged, or has more
            pixels than Pillow takes for harmless (`PIL.Image.MAX_IMAGE_PIXELS`).
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
        raise BrokenImageError(f"has more pixels than {_max_pixels():,}, the most taken") from None
    except UnidentifiedImageError:
        raise BrokenImageError("is not an image, expected JPEG or PNG") from None
    except Exception as error:  # decoders meet damage with errors of any kind
        reason = str(error) or type(error).__name__
        raise BrokenImageError(f"cannot be decoded ({reason}), expected a whole image") from None


def _to_rgb(image: "Image.Image") -> "Image.Image":
    from PIL import Image

    if image.mode.startswith("I"):  # convert() would clip at 255
        levels_HxW = np.asarray(image)
        if levels_HxW.min() < 0 or levels_HxW.max() >= 2**16:
            raise BrokenImageError("has grey levels of 32 bits, expected 8 or 16")
        image = Image.fromarray((levels_HxW >> 8).astype(np.uint8))
    elif image.mode == "F":
        raise BrokenImageError("has floats for grey levels, expected 8 or 16 bits")
    return image if image.mode == "RGB" else image.convert("RGB")


def _margin(size: int, crop: int) -> int:
    """What is cut off (negative: added) at the left or top; torchvision rounds the two apart."""
    return round((size - crop) / 2) if size >= crop else -((crop - size) // 2)


def _max_pixels() -> float:
    from PIL import Image

    return Image.MAX_IMAGE_PIXELS or math.inf


def _is_size(pixels: object) -> bool:
    return isinstance(pixels, int) and not isinstance(pixels, bool) and pixels >= 1
