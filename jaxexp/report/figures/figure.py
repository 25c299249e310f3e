"""A figure of a page, which has words and an interactive twin."""

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
        """At most six of them."""
        super().__init__(integer=True, nbins=6)


class ReportFigure(Figure):
    """A figure with words for those who cannot see it, and an interactive twin.

    Attributes:
        alt: what it shows, in words.
        interactive: the twin as Plotly's JSON, `data` and `layout`; None where there is none.
        hover: for lines, texts to show at their points.
        clouds: for lines that hold several curves, one after another, the name of each curve.
    """

    def __init__(self, *args: Keyword, **kwargs: Keyword) -> None:
        """As matplotlib's."""
        super().__init__(*args, **kwargs)
        self.alt = ""
        self.interactive: Spec | None = None
        self.hover: dict[Line2D, Sequence[str]] = {}
        self.clouds: dict[Line2D, Sequence[str]] = {}
