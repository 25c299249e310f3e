"""The old place of `jaxexp.reproduce.images.folder`, until `benchmarks/decoding.py` has moved."""

from jaxexp.reproduce.images.folder import SPLITS

__all__ = ["SPLITS"]
