"""Timing how photographs are decoded and resized, beside PyTorch's DataLoader with torchvision."""

import functools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from jaxexp.base.errors import UserError
from jaxexp.execution.devices import cores
from jaxexp.nn.torchvision import import_torchvision
from jaxexp.reproduce.images.decode import Transform
from jaxexp.reproduce.images.folder import SPLITS, scan
from jaxexp.reproduce.images.loading import load_images

OURS = "jaxexp"
_SIDE = 1024  # pixels of the photographs
_CLASSES = ("a", "b")
Way = Callable[[Path, Transform], None]


def compare_decoding(
    images: int = 2000, repeats: int = 3, *, peers: bool = True, own: Path | None = None
) -> None:
    """Time photographs of 1024×1024 pixels becoming arrays of 224×224; print a table of ratios.

    The photographs, JPEG files, are made for it, or those of your `own` folder. Every way is timed
    in turn, as often as `repeats` says.

    Raises UserError if an example is not there for every class and split, or if PyTorch or
    torchvision are asked for and missing.
    """
    if own is not None:
        images = len(scan(own).items)
    if images < len(SPLITS) * len(_CLASSES):
        raise UserError(f"images={images}: expected {len(SPLITS) * len(_CLASSES)} or more")
    transform = Transform(256, crop=224)
    ways: dict[str, Way] = {OURS: _decode}
    if peers:
        import_torchvision()  # a missing one is told before any work
    console = Console(width=None if sys.stdout.isatty() else 150)
    with tempfile.TemporaryDirectory() as temporary, console.status("") as status:
        status.update("making photographs")
        folder = own or make_photographs(Path(temporary) / "photographs", images)
        ways["jaxexp, decoded before"] = _load_cached(Path(temporary) / "cache")
        if peers:
            status.update("starting workers")
            ways[f"DataLoader, {cores()} workers"] = _loader(folder, transform)
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(repeats):
            for name, way in ways.items():
                status.update(name)
                started = time.perf_counter()
                way(folder, transform)
                seconds[name].append(time.perf_counter() - started)
    what = f"{_SIDE}×{_SIDE} JPEG" if own is None else str(own)
    console.print(f"{images:,} photographs, {what}, {cores()} cores", highlight=False, markup=False)
    console.print(_table(seconds, images))


def make_photographs(folder: Path, n: int) -> Path:
    """Crops of the photographs that scikit-learn ships, enlarged, as JPEG in the three splits."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(0)
    photos = load_sample_images().images
    for i in range(n):
        height, width, _ = photos[i % 2].shape
        left, top = rng.integers(0, [width - 400, height - 400])
        image = Image.fromarray(photos[i % 2]).crop((left, top, left + 400, top + 400))
        path = folder / SPLITS[i % len(SPLITS)] / _CLASSES[i // len(SPLITS) % 2] / f"{i:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC).save(path, quality=92)
    return folder


def _decode(folder: Path, transform: Transform) -> None:
    with tempfile.TemporaryDirectory() as cache:
        load_images(folder, transform, cache=Path(cache))


def _load_cached(cache: Path) -> Way:
    def run(folder: Path, transform: Transform) -> None:
        load_images(folder, transform, cache=cache)

    return run


class Photographs:
    """The images of all splits as torchvision reads them: tensors of uint8, and labels."""

    def __init__(self, folder: Path, transform: Transform) -> None:
        """Nothing is read yet: workers are sent this, and have torchvision to import first."""
        self.folder, self.transform = folder, transform

    @functools.cached_property
    def _examples(self) -> Any:
        torchvision = import_torchvision()
        import torch

        steps = torchvision.transforms.Compose(
            [
                torchvision.transforms.Resize(self.transform.resize),
                torchvision.transforms.CenterCrop(self.transform.crop),
                torchvision.transforms.PILToTensor(),
            ]
        )
        folders = [str(self.folder / split) for split in SPLITS]
        return torch.utils.data.ConcatDataset(
            [torchvision.datasets.ImageFolder(folder, steps) for folder in folders]
        )

    def __getstate__(self) -> dict[str, Any]:
        """What a worker is sent."""
        return {"folder": self.folder, "transform": self.transform}

    def __len__(self) -> int:
        """Of all splits."""
        return len(self._examples)

    def __getitem__(self, index: int) -> Any:
        """One image and its label."""
        return self._examples[index]


def _loader(folder: Path, transform: Transform) -> Way:
    """All images through a DataLoader, in batches of 32, its workers started before the clock.

    They are spawned: where JAX has threads, a forked process could deadlock.
    """
    import torch

    loader: Any = torch.utils.data.DataLoader(
        Photographs(folder, transform),  # type: ignore[arg-type]  # no subclass, but all it needs
        batch_size=32,
        num_workers=cores(),
        multiprocessing_context="spawn",
        persistent_workers=True,
    )

    def run(folder: Path, transform: Transform) -> None:
        for _ in loader:
            pass

    run(folder, transform)
    return run


def _table(seconds: dict[str, list[float]], images: int) -> Table:
    table = Table("", "ms per image", "ratio", box=None)
    ours = statistics.median(seconds[OURS])
    for name, times in seconds.items():
        median, least, most = (1e3 * f(times) / images for f in (statistics.median, min, max))
        ratio = f"{statistics.median(times) / ours:.2f}"
        table.add_row(name, f"{median:.2f} ({least:.2f} to {most:.2f})", ratio)
    return table
