"""What all figures share: colours, fonts, panels, scales and legends."""

import contextlib
import io
import textwrap
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, TypedDict, Unpack

import numpy as np
import xarray as xr
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import Formatter, LogLocator, NullFormatter
from matplotlib.typing import ColorType
from numpy.typing import ArrayLike
from PIL import Image  # matplotlib needs it as well

from jaxexp.base.errors import UserError
from jaxexp.report.figures.figure import EpochLocator, Keyword, ReportFigure, Style
from jaxexp.results import seeds, select
from jaxexp.results.select import (
    axes,
    direction,
    hyperparameters,
    metric_words,
    number,
    point,
    rank,
    setting,
    size,
    units,
    within,
    words,
)

STYLE: dict[Keyword, Keyword] = {  # only newer matplotlibs have a type for its keys
    "font.family": "DejaVu Sans",  # shipped with matplotlib: the same everywhere
    "font.size": 9.5,
    "axes.titlesize": 9.5,
    "figure.labelsize": 9.5,
    "axes.edgecolor": "0.3",
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "lines.linewidth": 1.5,
    "lines.markersize": 5,
    "text.parse_math": False,  # a "$" in a name or a unit is just that
    "legend.frameon": False,
    "legend.fontsize": 9,
    "agg.path.chunksize": 10_000,  # 100,000 steps in one line are too much for Agg at once
}
# Okabe and Ito's colours, which colour-blind people can tell apart.
CATEGORIES = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C564B",
)  # fmt: skip
OTHERS = "0.78"  # trials that stand in the background
# Validation and test often coincide, so the test curve is dashed to show the other through it.
SPLITS: dict[str, Style] = {
    "train": {"color": "#0072B2", "linestyle": "-", "marker": "s"},
    "validation": {"color": "#E69F00", "linestyle": "-", "marker": "o"},
    "test": {"color": "#222222", "linestyle": (0, (3, 2)), "marker": "^"},
}
LINE = 0.21  # height of a line of a legend, in inches
BEYOND = 100.0  # times what nearly all values are below: a log axis ends there
FEW = 10  # up to this many values of a hyperparameter get a tick each
LOG_DECADES = 1.0  # positive numbers that span more get a log scale
DIVERGED: Style = {"marker": "X", "markersize": 8, "markeredgecolor": "white"}
STOPPED: Style = {"marker": "|", "markersize": 11, "markeredgewidth": 1.8}
RING: Style = {"marker": "o", "mfc": "none", "mec": "black", "ls": "none"}


class Shared(TypedDict, total=False):
    """Which axes the panels of a figure share."""

    sharex: bool | Literal["row", "col"]
    sharey: bool | Literal["row", "col"]


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """The context to draw figures in; it ignores that the font has no emoji, as twins show them."""
    with rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing from font", UserWarning)
        yield


def to_png(fig: Figure, dpi: int = 150) -> bytes:
    """`fig` as a PNG file; the same figure gives the same bytes.

    It has at most 256 colours, for a third of the size: few figures have more, except photographs,
    which are small here.
    """
    drawn, png = io.BytesIO(), io.BytesIO()
    with drawing():
        fig.savefig(drawn, format="png", dpi=dpi, pil_kwargs={"compress_level": 0})
    image = Image.open(drawn).convert("RGB")
    image.quantize(256, dither=Image.Dither.NONE).save(png, format="PNG", optimize=True)
    return png.getvalue()


def to_svg(fig: ReportFigure) -> bytes:
    """`fig` as an SVG file with its alt text; the same figure gives the same bytes."""
    drawn = io.BytesIO()
    with drawing(), rc_context({"svg.hashsalt": "jaxexp"}):
        fig.savefig(drawn, format="svg", metadata={"Date": None, "Description": fig.alt})
    return drawn.getvalue()


def make_panels(
    rows: int, cols: int, width: float, height: float, count: int | None = None,
    **share: Unpack[Shared],
) -> tuple[ReportFigure, np.ndarray]:  # fmt: skip
    """A figure and its (rows, cols) panels of this size in inches; only `count` are shown."""
    fig = ReportFigure(figsize=(width * cols, height * rows), layout="constrained")
    panels = fig.subplots(rows, cols, squeeze=False, **share)
    for ax in panels.flat:
        ax.grid(True, color="0.9", linewidth=0.6)
        ax.tick_params(color="0.3", length=3, width=0.7, labelsize=9)
    for ax in panels.flat[count or panels.size :]:
        ax.remove()
    return fig, panels


def grid_shape(count: int, widest: int) -> tuple[int, int]:
    """The rows and columns for `count` panels, at most `widest` side by side."""
    cols = min(count, widest)
    return -(-count // cols), cols


def axis_label(ds: xr.Dataset, metric: str, split: str | None = None) -> str:
    """A metric, of a split if given, and its unit: "validation loss (nats)"."""
    name = metric_words(metric, split) if split else words(metric)
    return f"{name} ({units(ds, metric)})" if units(ds, metric) else name


def best_of(
    ds: xr.Dataset, most: int, metric: str = "loss", split: str | None = None
) -> tuple[list[tuple[str, xr.Dataset]], str]:
    """The trials that a figure has room for, and a note that says which, if they are not all.

    If there are at most `most` trials, all in the order of `points`; else the best, best first.
    Labels that are equal because of rounding are followed by the numbers in full.
    """
    if size(ds) <= most:
        return _told_apart(ds, range(size(ds))), ""
    ranked = rank(ds, metric, split).index[:most]
    by = f"{metric_words(metric, split) if split else words(metric)} {select.measured_when(ds)}"
    note = f"the best {most} of {number(size(ds))} {select.what(ds)}s by {by}"
    return _told_apart(ds, ranked), note


def _told_apart(ds: xr.Dataset, places: Iterable[int]) -> list[tuple[str, xr.Dataset]]:
    trials = [point(ds, int(place)) for place in places]
    alike = Counter(label for label, _ in trials)
    made = []
    for label, own in trials:
        if alike[label] > 1:
            values = [select.in_the_end(own, name).item() for name in hyperparameters(ds)]
            rounded = [str(v) for v in values if isinstance(v, float) and setting(v) != str(v)]
            label += f" ({', '.join(rounded)})" if rounded else ""
        made.append((label, own))
    return made


def averaged(ds: xr.Dataset) -> xr.Dataset:
    """The means over the seeds, if the seed is an axis with several values; else `ds` itself."""
    return seeds.average(ds) if seeds.several(ds) else ds


def by_epoch_and_split(ds: xr.Dataset) -> xr.Dataset:
    """Results with both dimensions, even if one epoch or one split was selected."""
    for dim in ("epoch", "split"):
        if dim not in ds.coords:
            raise UserError(f"ds has no coordinate {dim!r}: expected results that keep it")
        if ds[dim].dims:
            continue
        names = [f"{m}{of}" for m in select.metrics(ds) for of in ("", "_std", "_undefined")]
        names += [f"{'final' if dim == 'split' else 'running'}_{name}" for name in names]
        expanded = {name: ds[name].expand_dims(dim) for name in names if name in ds.data_vars}
        ds = ds.drop_vars(dim).assign(expanded)
    return ds


def seeds_note(ds: xr.Dataset) -> str:
    """What bands and error bars are, if `ds` holds means over seeds; else ""."""
    if not select.averaged_over(ds):
        return ""
    return f"mean of {seeds.in_words(ds)} ± standard deviation"


def applying_note(ds: xr.Dataset, *names: str) -> str:
    """Which trials a figure shows, if the hyperparameters do nothing in the others; else ""."""
    shown = size(select.applying(ds, *names))
    if shown == size(ds):
        return ""
    verb = "has" if len(names) == 1 else "have"
    which = f"{' and '.join(map(words, names))} {verb} an effect"
    return f"the {number(shown)} of {number(size(ds))} {select.what(ds)}s in which {which}"


def stopped_note(ds: xr.Dataset) -> str:
    """What the bar at the end of a curve is, if a trial was stopped early; else ""."""
    if not bool(select.stopped(ds).any()):
        return ""
    if not select.averaged_over(ds):
        return "a bar ends the curve of a trial that was stopped"
    as_it_was = "at its best epoch" if "best" in select.measured_when(ds) else "in the end"
    each = select.replicate(ds)
    return (
        f"a bar ends the curve of a setting when its last {each} was stopped; a {each} stopped "
        f"before counts with its value {as_it_was}"
    )


def band(
    ax: Axes, x: ArrayLike, mean: ArrayLike, std: ArrayLike, colour: ColorType | None, name: str,
    alpha: float = 0.18,
) -> None:  # fmt: skip
    """A band of mean ± `std` behind the curve `name`, with gaps where it is not finite.

    If the means are all positive, so is the band, so that a log scale can show it.
    """
    x, mean, std = (np.asarray(own, dtype=float) for own in (x, mean, std))
    known = np.isfinite(mean) & np.isfinite(std)
    low = mean - std
    if known.any() and mean[known].min() > 0:
        low = np.maximum(low, mean / 10)
    ax.fill_between(
        x, low, mean + std, where=known, color=colour, alpha=alpha, lw=0, gid=name, zorder=1.7
    )


def headed(*notes: str) -> str:
    """The notes that are not empty, joined into one line that starts with a capital."""
    note = "; ".join(note for note in notes if note)
    return note[:1].upper() + note[1:]


def say_which(fig: Figure, note: str) -> None:
    """Write a note above a figure, such as which trials it shows; the figure grows with it."""
    if note:
        note = "\n".join(textwrap.wrap(note, int(fig.get_figwidth() * 13)))
        fig.suptitle(note[0].upper() + note[1:], fontsize=9.5, color="0.35")
        fig.set_figheight(fig.get_figheight() + 0.3 + 0.17 * note.count("\n"))


def set_titles(panels: np.ndarray, titles: Sequence[str], width: float) -> None:
    """Titles for (rows, cols) panels of `width` inches, wrapped; the figure grows with them."""
    wrapped = [
        "\n".join(textwrap.fill(line, int(width * 12)) for line in title.split("\n"))
        for title in titles
    ]
    for ax, title in zip(panels.flat, wrapped, strict=False):
        ax.set_title(title)
    cols = panels.shape[1]
    lines = [title.count("\n") for title in wrapped]
    extra = sum(max(lines[i : i + cols]) for i in range(0, len(lines), cols))
    fig = panels.flat[0].figure
    fig.set_figheight(fig.get_figheight() + 0.17 * extra)


def trial_colours(ds: xr.Dataset) -> list[ColorType]:
    """A colour for each trial: sequential along ordered numbers, else as distinct as possible."""
    trials = size(ds)
    if trials <= len(CATEGORIES) and not (len(axes(ds)) == 1 and _ordered(ds)):
        return list(CATEGORIES[:trials])
    return list(colormaps["viridis"](np.linspace(0, 0.85, trials)))


def _ordered(ds: xr.Dataset) -> bool:
    """Whether all hyperparameters along the one axis are numbers that only rise or only fall."""
    values = [ds[name].values for name in hyperparameters(ds)]
    if len(values[0]) < 3 or any(v.dtype.kind not in "iuf" for v in values):
        return False
    steps = [np.diff(v.astype(float)) for v in values]
    return all((step >= 0).all() or (step <= 0).all() for step in steps)


class Ticks(Formatter):
    """Plain numbers; evenly spaced ticks have the digits that tell neighbours apart."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        """The text of one tick, at `x`."""
        return number(float(x))

    def format_ticks(self, values: Sequence[float]) -> list[str]:
        """The texts of all of them."""
        apart = np.diff(np.unique(np.asarray(values, dtype=float)))
        if not apart.size or apart.max() > 1.5 * apart.min():  # on a log axis
            return [self(x) for x in values]
        return [within(float(x), float(apart.min())) for x in values]


def by_epoch(ax: Axes, ds: xr.Dataset) -> None:
    """Make the x axis of `ax` the epochs of `ds`."""
    ax.set_xlabel("epoch")
    ax.set_xlim(0.5 if ds.sizes["epoch"] < 20 else 0, float(ds["epoch"].max()) + 0.5)
    ax.xaxis.set_major_locator(EpochLocator())


def wants_log(values: ArrayLike) -> bool:
    """Whether the finite `values` are positive and span more than `LOG_DECADES` decades."""
    finite = _finite(np.asarray(values, dtype=float))
    if not finite.size or finite.min() <= 0:
        return False
    return bool(np.log10(finite.max() / finite.min()) > LOG_DECADES)


def log_spreads(x: np.ndarray) -> bool:
    """Whether the closest of sorted `x` are further apart on a log scale than on a linear one."""
    if not x.size or x.min() <= 0 or x.min() == x.max():
        return False
    linear, log = np.diff(x) / np.ptp(x), np.diff(np.log(x)) / np.ptp(np.log(x))
    return bool(log.min() > linear.min())


def want_even(x: np.ndarray) -> bool:
    """Whether to space sorted `x` evenly: they are few, and some are close on either scale."""
    shown = np.log(x) if log_spreads(x) else x
    return 2 < len(x) <= FEW and bool(np.diff(shown).min() < 0.02 * np.ptp(shown))


def scale_y(ax: Axes, ds: xr.Dataset, metric: str, values: xr.DataArray | np.ndarray) -> None:
    """Make the y axis of `ax` logarithmic, with plain numbers, if `values` ask for it.

    Only if lower is better: an accuracy or an R² is read on a linear axis. Such an axis leaves out
    the very low values of trials on the way to diverge, which would make all others look alike.
    """
    if direction(ds, metric) == "higher":
        _cut_below(ax, values)
    if direction(ds, metric) == "lower" and wants_log(values):
        log_y(ax, values)


def _cut_below(ax: Axes, values: ArrayLike) -> None:
    """End a linear axis before values that are far below the better half."""
    finite = _finite(np.asarray(values, dtype=float))
    if not finite.size:
        return
    best = float(finite.max())
    span = best - float(np.median(finite)) or abs(best) or 1.0
    if best - float(finite.min()) <= BEYOND**2 * span:
        return
    low = float(finite[finite >= best - BEYOND * span].min())
    room = 0.1 * (best - low or span)
    ax.set_ylim(low - room, best + room)


def log_y(ax: Axes, values: ArrayLike) -> None:
    """Make the y axis of `ax` logarithmic, with plain numbers, for these positive `values`.

    A few values far above all others, on the way to diverge, lie beyond the axis rather than
    flatten the rest.
    """
    ax.set_yscale("log")
    finite = _finite(np.asarray(values, dtype=float))
    most = float(np.quantile(finite, 0.95))
    if finite.max() > BEYOND**2 * most:
        low, top = float(finite.min()), BEYOND * most
        ax.set_ylim(low / (top / low) ** 0.05, top)
        finite = finite[finite <= BEYOND * most]
    decades = np.log10(finite.max() / finite.min())
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 3 else (1,)))
    ax.yaxis.set_major_formatter(Ticks())
    ax.yaxis.set_minor_formatter(NullFormatter())


def label_y(ax: Axes, label: str) -> None:
    """Label the y axis of `ax`, and say if it starts far from zero or leaves values out."""
    low, high = sorted(ax.get_ylim())
    if ax.get_yscale() == "linear" and high - low < 0.5 * max(abs(low), abs(high)):
        ends = [within(end, high - low) for end in (low, high)]
        label += f"\n(axis from {ends[0]} to {ends[1]})"
    if ax.get_yscale() == "linear" and ax.dataLim.y0 < low - BEYOND * (high - low):
        label += f"\n(down to {number(float(ax.dataLim.y0), 2)}, beyond the axis)"
    if ax.get_yscale() == "log" and ax.dataLim.y1 > 1.5 * high:
        label += f"\n(up to {number(float(ax.dataLim.y1), 2)}, beyond the axis)"
    ax.set_ylabel(label)


def add_legend(fig: Figure, panels: Iterable[Axes]) -> None:
    """One legend below the panels, with each label once, in as many columns as fit.

    Long labels are wrapped, and the figure grows with the legend, so that panels keep their height.
    """
    found = [ax.get_legend_handles_labels() for ax in panels if ax.figure]
    handles = {name: h for hs, names in found for h, name in zip(hs, names, strict=True)}
    if not handles:
        return
    letters = int(fig.get_figwidth() * 12.5)
    names = [textwrap.fill(name, letters - 8) for name in handles]
    sizes = [max(map(len, name.split("\n"))) + 5 for name in names]
    columns = len(names) if sum(sizes) <= letters else letters // max(sizes)
    columns = max(1, min(columns, len(names)))
    rows = -(-len(names) // columns) * max(name.count("\n") + 1 for name in names)
    fig.set_figheight(fig.get_figheight() + LINE * max(0, rows - 2))
    fig.legend(
        list(handles.values()),
        names,
        loc="outside lower center",
        ncols=columns,
        columnspacing=1.5,
    )


def _finite(values: np.ndarray) -> np.ndarray:
    finite: np.ndarray = values[np.isfinite(values)]
    return finite
