"""The old place of `jaxexp.reproduce.images.loading`, until `benchmarks/decoding.py` has moved."""

from jaxexp.reproduce.images.decode import Transform
from jaxexp.reproduce.images.loading import load_images

__all__ = ["Transform", "load_images"]
