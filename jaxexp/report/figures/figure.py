"""A figure of a page, with alt text and an interactive twin."""

from collections.abc import Sequence
from typing import Any, TypeAlias

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

Spec: TypeAlias = dict[str, Any]  # a part of Plotly's JSON
Keyword: TypeAlias = Any  # of matplotlib's functions, which have too many to list
Style: TypeAlias = dict[str, Keyword]


class EpochLocator(MaxNLocator):
    """Ticks at whole epochs."""

    def __init__(self) -> None:
        """Allow at most six ticks."""
        super().__init__(integer=True, nbins=6)


class ReportFigure(Figure):
    """A figure with alt text for those who cannot see it, and an interactive twin.

    Attributes:
        alt: what it shows, in words.
        interactive: the twin as Plotly's JSON, `data` and `layout`; None if there is none.
        hover: by line, the texts to show at its points.
        clouds: by line that holds several curves one after another, the names of the curves.
    """

    def __init__(self, *args: Keyword, **kwargs: Keyword) -> None:
        """Take the arguments of matplotlib's `Figure`."""
        super().__init__(*args, **kwargs)
        self.alt = ""
        self.interactive: Spec | None = None
        self.hover: dict[Line2D, Sequence[str]] = {}
        self.clouds: dict[Line2D, Sequence[str]] = {}
