"""Folders of images in the layout of torchvision.datasets.ImageFolder: found, not yet read."""

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import jaxexp as jx
from jaxexp.reproduce.images.decode import read_image

if TYPE_CHECKING:
    from PIL import Image

SPLITS = ("train", "val", "test")
# torchvision's: files with other suffixes are ignored.
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Item:
    """An image that is not read yet.

    Attributes:
        name: path of the file relative to the folder, with slashes.
        split: index of its split.
        label: index of its class.
        state: size and times of the file, which change when the image does.
    """

    name: str
    split: int
    label: int
    state: tuple[int, ...] = ()


@dataclass(frozen=True)
class Source:
    """Images that are not read yet, split by split.

    Attributes:
        name: where they are from, for display.
        version: identifies the origin: equal versions and items mean equal images.
        classes: name of each class, sorted.
        items: the images.
        read: returns the RGB image of an item's name.
    """

    name: str
    version: str
    classes: tuple[str, ...]
    items: tuple[Item, ...]
    read: "Callable[[str], Image.Image]"


def scan(folder: Path) -> Source:
    """The images of a folder, in torchvision's order.

    Raises:
        UserError: the folder does not have this layout, or cannot be read.
    """
    try:
        classes = _check_layout(folder)
        items = [
            item
            for i, split in enumerate(SPLITS)
            for label, name in enumerate(classes)
            for item in _class_items(folder, i, label, Path(split, name))
        ]
    except OSError as error:
        raise jx.UserError(f"{error.filename}: cannot be read ({error.strerror})") from error
    # With the path: files in another folder may agree in name, size and time.
    version = os.path.abspath(folder)
    return Source(str(folder), version, classes, tuple(items), lambda n: read_image(folder / n))


def _check_layout(folder: Path) -> tuple[str, ...]:
    """The classes; every split must have the same."""
    expected = "expected one with train/, val/ and test/, each with a folder for every class"
    if not folder.is_dir():
        found = "not a folder" if folder.exists() else "no such folder"
        raise jx.UserError(f"{folder}: {found}, {expected}")
    if missing := [f"{split}/" for split in SPLITS if not (folder / split).is_dir()]:
        raise jx.UserError(f"{folder}: there is no {' and no '.join(missing)}, {expected}")
    of_split = {s: {e.name for e in os.scandir(folder / s) if e.is_dir()} for s in SPLITS}
    classes = sorted(of_split["train"])
    if len(classes) < 2:
        found = f"only the class {classes[0]!r}" if classes else "no folder in it"
        raise jx.UserError(
            f"{folder / 'train'}: {found}, expected a folder for each of two or more"
        )
    for split in SPLITS[1:]:
        if differing := sorted(of_split[split] ^ of_split["train"]):
            names = ", ".join(map(repr, differing))
            raise jx.UserError(
                f"{folder / split}: its classes are not those of train/ ({names} in one alone), "
                "expected the same folders in both"
            )
    return tuple(classes)


def _class_items(folder: Path, split: int, label: int, of_class: Path) -> Iterator[Item]:
    empty = True

    def fail(error: OSError) -> None:
        raise error

    for root, _, names in sorted(os.walk(folder / of_class, onerror=fail, followlinks=True)):
        for name in sorted(names):
            if name.lower().endswith(SUFFIXES):
                path = Path(root, name)
                status = path.stat()
                if not stat.S_ISREG(status.st_mode):
                    raise jx.UserError(f"{path}: not a file, expected an image")
                state = status.st_size, status.st_mtime_ns, status.st_ctime_ns
                yield Item(path.relative_to(folder).as_posix(), split, label, state)
                empty = False
    if empty:
        raise jx.UserError(
            f"{folder / of_class}: no image in it, expected files named {', '.join(SUFFIXES)}"
        )
