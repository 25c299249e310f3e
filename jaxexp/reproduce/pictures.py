"""Single images of a run, to be looked at."""

from pathlib import Path

import numpy as np

from jaxexp.reproduce.decode import BrokenImageError, read_image
from jaxexp.reproduce.photos import draw


def picture(folder: str, name: str, side: int = 320) -> np.ndarray | None:
    """An image, uint8 [H, W, 3] with at most `side` pixels each way, or None if it is gone.

    `folder` and `name` are as results have them: `images` ("" for the embedded ones), `test_file`.
    """
    try:
        image = read_image(Path(folder, name)) if folder else draw(name)
    except (BrokenImageError, ImportError, ValueError):  # a library or a name that is not there
        return None
    image.thumbnail((side, side))
    return np.asarray(image)
