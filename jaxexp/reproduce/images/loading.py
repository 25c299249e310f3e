"""Labelled images in three splits, from a folder or from the embedded photographs.

They are decoded once, on all cores, into arrays that are memory-mapped afterwards: neither the
images nor the arrays need to fit into memory.
"""

import os
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np
from platformdirs import user_cache_path

import jaxexp as jx
from jaxexp.reproduce.images.cache import ArrayCache, Note
from jaxexp.reproduce.images.decode import BrokenImageError, Transform
from jaxexp.reproduce.images.folder import SPLITS, Item, Source, scan
from jaxexp.reproduce.images.photos import photographs

_FORMAT = 1  # of the arrays: a new number makes cached ones obsolete
_AHEAD = 64  # images decoded ahead of the one to be written next

Progress = Callable[[int, int], None]  # images done, images in total


@dataclass(frozen=True, eq=False)
class ImageSplit:
    """N images of one size and their classes.

    Attributes:
        x_NxHxWx3: uint8 [N, H, W, 3], red, green and blue, memory-mapped.
        y_N: int32 [N], class index, 0..C-1.
        files: path of each relative to the folder, with slashes.
    """

    x_NxHxWx3: np.ndarray
    y_N: np.ndarray
    files: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Images:
    """Images of C classes in three splits.

    Attributes:
        classes: name of each class, sorted; the index is the label.
        train: the images to fit.
        validation: the images to compare settings on.
        test: the images to report on.
        source: where the images are from, for display.
        fingerprint: 16 hex digits, equal for equal arrays and class names.
        skipped: names of the broken files that were left out.
    """

    classes: tuple[str, ...]
    train: ImageSplit
    validation: ImageSplit
    test: ImageSplit
    source: str
    fingerprint: str
    skipped: tuple[str, ...] = ()


def load_images(
    folder: str | Path | None,
    transform: Transform,
    *,
    skip_broken: bool = False,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Images:
    """Load images in three splits, from a folder or from the package scikit-learn.

    The folder has the layout of `torchvision.datasets.ImageFolder`: `train/`, `val/` and `test/`,
    each with a folder of JPEG or PNG files for every class (or other formats that torchvision
    reads; other files are ignored). The pixels are the same as torchvision's; see `read_image` for
    transparency, EXIF and 16-bit images.

    Args:
        folder: the folder; None for crops of two photographs, real or up-sampled (`photos.py`).
        transform: how images are resized and cropped.
        skip_broken: leave out files that cannot be decoded, and name them in `Images.skipped`.
        cache: the folder for decoded images; None for one in the user's cache directory. It is
            kept below 10 GiB: the least recently used images are deleted.
        progress: called with the images done and the images in total, while they are decoded.

    Raises:
        UserError: the folder does not have this layout; a file is broken, and `skip_broken` is
            off or nothing else is left of its class and split; the cache cannot be written;
            Pillow or scikit-learn is missing. The message names the path and what was expected.
    """
    _check_libraries(folder)
    source = scan(Path(folder)) if folder is not None else photographs()
    arrays = ArrayCache(cache or user_cache_path("jaxexp") / "images")
    shape = (len(source.items), *transform.shape)
    write = partial(_write, source, transform, skip_broken, progress or (lambda done, total: None))
    x_NxHxWx3, broken, sha256 = arrays.get(_key(source, transform), shape, write)
    if broken and not skip_broken:  # cached by a call with skip_broken
        raise _broken_error(source, *next(iter(broken.items())))
    return _assemble(source, x_NxHxWx3, broken, sha256)


def _check_libraries(folder: object) -> None:
    try:
        import PIL.Image  # noqa: F401

        if folder is None:
            import sklearn.datasets  # noqa: F401
    except ImportError as error:
        raise jx.UserError(f"images need {error.name}: pip install 'jaxexp[vision]'") from error


def _key(source: Source, transform: Transform) -> str:
    """A name for the decoded images, which depends on the files, transform and Pillow's version."""
    import PIL

    return jx.digest(repr((_FORMAT, PIL.__version__, transform, source.version, source.items)))


def _write(
    source: Source, transform: Transform, skip_broken: bool, progress: Progress, file: BinaryIO
) -> tuple[int, Note]:
    """Write all images to the file; returns their number, and what is wrong with broken ones."""

    def decode(item: Item) -> np.ndarray | BrokenImageError:
        try:
            return transform(source.read(item.name))
        except BrokenImageError as error:
            return error

    broken: dict[str, str] = {}
    # Pillow warns about things that torchvision also ignores (EXIF, transparency).
    with warnings.catch_warnings(action="ignore"):
        for done, (item, result) in enumerate(_in_order(decode, source.items), 1):
            if isinstance(result, BrokenImageError):
                broken[item.name] = str(result)
                if not skip_broken:
                    raise _broken_error(source, item.name, str(result))
            else:
                file.write(result.tobytes())
            progress(done, len(source.items))
    _check_left(source, broken)
    return len(source.items) - len(broken), broken


def _in_order(
    decode: Callable[[Item], np.ndarray | BrokenImageError], items: tuple[Item, ...]
) -> Iterator[tuple[Item, np.ndarray | BrokenImageError]]:
    """Each item and its decoded image, by threads: Pillow releases the GIL."""
    waiting: deque[tuple[Item, Future[np.ndarray | BrokenImageError]]] = deque()
    pool = ThreadPoolExecutor()
    try:
        for item in items:
            waiting.append((item, pool.submit(decode, item)))
            if len(waiting) == _AHEAD:
                item, result = waiting.popleft()
                yield item, result.result()
        for item, result in waiting:
            yield item, result.result()
    finally:
        pool.shutdown(cancel_futures=True)  # after an error, the rest is not decoded


def _broken_error(source: Source, name: str, reason: str) -> jx.UserError:
    hint = "skip_broken leaves such files out"
    return jx.UserError(f"{os.path.join(source.name, name)}: {reason} ({hint})")


def _check_left(source: Source, broken: dict[str, str]) -> None:
    left = {(item.split, item.label) for item in source.items if item.name not in broken}
    for item in source.items:
        if (item.split, item.label) not in left:
            folder = Path(source.name, SPLITS[item.split], source.classes[item.label])
            raise jx.UserError(
                f"{folder}: every image in it is broken, expected at least one that is not "
                f"({Path(item.name).name} {broken[item.name]})"
            )


def _assemble(source: Source, x_NxHxWx3: np.ndarray, broken: Note, sha256: bytes) -> Images:
    items = [item for item in source.items if item.name not in broken]
    y_N = np.array([item.label for item in items], np.int32)
    cuts = np.searchsorted([item.split for item in items], range(len(SPLITS) + 1)).tolist()
    train, validation, test = [
        ImageSplit(x_NxHxWx3[a:b], y_N[a:b], tuple(item.name for item in items[a:b]))
        for a, b in pairwise(cuts)
    ]
    content = repr((source.classes, x_NxHxWx3.shape, cuts)).encode() + y_N.astype("<i4").tobytes()
    fingerprint = jx.digest(content + sha256)
    return Images(source.classes, train, validation, test, source.name, fingerprint, tuple(broken))
