"""Embedded images: crops of two photographs, real or with a generator's up-sampling artifacts.

The photographs come with scikit-learn, so nothing is downloaded. Generators produce a small image
and enlarge it, and an up-convolution leaves a trace with the period of its stride: a checkerboard
where its kernel overlaps itself unevenly (Odena et al., "Deconvolution and checkerboard artifacts",
2016), copies of the spectrum (Zhang, Karaman and Chang, "Detecting and simulating artifacts in GAN
fake images", 2019; Durall et al., "Watch your up-convolution", 2020; Frank et al., "Leveraging
frequency analysis for deep fake image recognition", 2020). As in the second of these, "generated"
images are real ones blended with a copy that went through such an up-sampling. It preserves the
brightness, and its checkerboard compensates for its blur: neither brightness nor sharpness
separates the classes well.

Shapes: H height, W width.
"""

import functools
import hashlib
from typing import TYPE_CHECKING

import numpy as np

from jaxexp.reproduce.images.folder import SPLITS, Item, Source

if TYPE_CHECKING:
    from PIL import Image

CLASSES = ("generated", "real")
SIZE = 64  # pixels per side: resizing to 64 keeps the trace, to 224 enlarges it
_VERSION = 1  # of everything that determines the pixels
_COUNTS = (800, 200, 200)  # images of each split
_COLUMNS = ((0, 384), (384, 512), (512, 640))  # of the photographs, by split: no two share a pixel
_ROWS = 426  # of 427: an even number, like the columns
_DOWNSAMPLE = np.array([1, 2, 1], np.float32) / 4
_UPSAMPLE = np.array([4, 10, 4], np.float32) / 9  # [1, 2, 1] / 2 would interpolate without a trace
_STRENGTHS = (0.2, 0.8)  # weight of the up-sampled copy, drawn for each image


def photographs() -> Source:
    """The embedded images, not yet computed; both classes are equally frequent in every split."""
    import sklearn

    items = tuple(
        Item(f"{split}/{name}/{number:03d}", i, label)
        for i, split in enumerate(SPLITS)
        for label, name in enumerate(CLASSES)
        for number in range(_COUNTS[i] // len(CLASSES))
    )
    version = f"photographs {_VERSION}, scikit-learn {sklearn.__version__}"
    return Source("embedded photographs", version, CLASSES, items, draw)


def draw(name: str) -> "Image.Image":
    """The RGB image of a name: a crop of one of the photographs at a place chosen by a hash."""
    from PIL import Image

    split, of_class, number = name.split("/")
    real_HxWx3, upsampled_HxWx3 = _region(SPLITS.index(split), int(number) % 2)
    height, width, _ = real_HxWx3.shape
    words = np.frombuffer(hashlib.sha256(name.encode()).digest(), "<u4").tolist()
    # Even: a generator's checkerboard has the same phase in every image.
    top, left = words[0] % (height - SIZE + 1) & ~1, words[1] % (width - SIZE + 1) & ~1
    crop = np.s_[top : top + SIZE, left : left + SIZE]
    x_HxWx3 = real_HxWx3[crop]
    if of_class == "generated":
        strength = np.float32(np.interp(words[2], (0, 2**32), _STRENGTHS))
        x_HxWx3 = x_HxWx3 + strength * (upsampled_HxWx3[crop] - x_HxWx3)
    return Image.fromarray(np.rint(x_HxWx3.clip(0, 255)).astype(np.uint8))


@functools.cache
def _region(split: int, photograph: int) -> tuple[np.ndarray, np.ndarray]:
    """A split's part of a photograph, original and up-sampled from half size: float32 [H, W, 3]."""
    from sklearn.datasets import load_sample_images

    photo_HxWx3 = load_sample_images().images[photograph].astype(np.float32)
    real_HxWx3 = photo_HxWx3[:_ROWS, slice(*_COLUMNS[split])]
    strided_HxWx3 = np.zeros_like(real_HxWx3)  # zeros between the pixels of the half
    strided_HxWx3[::2, ::2] = _filter(real_HxWx3, _DOWNSAMPLE)[::2, ::2]
    return real_HxWx3, _filter(strided_HxWx3, _UPSAMPLE)


def _filter(x_HxWx3: np.ndarray, kernel_3: np.ndarray) -> np.ndarray:
    """Separable convolution along height and width, mirrored at the edges."""
    for axis in (0, 1):
        padded = np.pad(x_HxWx3, [(1, 1) if a == axis else (0, 0) for a in range(3)], "reflect")
        n = x_HxWx3.shape[axis]
        x_HxWx3 = sum(
            weight * padded.take(range(i, i + n), axis) for i, weight in enumerate(kernel_3)
        )
    return x_HxWx3
