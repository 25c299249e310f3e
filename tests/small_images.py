"""A folder of images so small and few that a ResNet trains on them in a test."""

from pathlib import Path

import numpy as np
import pytest

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")

SIZE = 16
COUNTS = {"train": 20, "val": 6, "test": 7}  # of each class; 40 fill no batch of 32


def write_images(folder: Path, classes: tuple[str, ...] = ("dark", "light")) -> Path:
    """Noise, brighter in the later classes."""
    rng = np.random.default_rng(0)
    for split, count in COUNTS.items():
        for label, name in enumerate(classes):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(30 * label, 30 * label + 190, (40, 36, 3), np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{i}.png")
    return folder
