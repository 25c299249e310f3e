"""Data to sweep over: European places with their countries."""

from jaxexp.data.places import Places, Split, load_places

__all__ = ["Places", "Split", "load_places"]
