"""Several baselines side by side, and images that tell two runs apart."""

from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator

from jaxexp.report.figures.figure import ReportFigure, Style
from jaxexp.report.figures.interactive import attach
from jaxexp.report.figures.style import SPLITS, STYLE, add_legend, grid_shape, make_panels
from jaxexp.results import select
from jaxexp.results.compare import finished
from jaxexp.results.select import number

REPORT: Style = {
    "color": "#D55E00", "marker": "D", "ms": 6.5, "mfc": "white", "mew": 1.6, "ls": "none",
}  # fmt: skip
BAR: Style = {"color": "#D55E00", "marker": "|", "ms": 21, "mew": 2.8, "ls": "none"}


@rc_context(STYLE)
def ranking(
    table: pd.DataFrame, reference: Mapping[str, float], chance: float | None = None
) -> ReportFigure:
    """Test accuracy of each row of `compare.baselines` as a bar, the first on top.

    If there are several seeds, a line shows their mean ± standard deviation. `reference` holds what
    somebody else measured, by baseline; `chance` is the accuracy of always naming the larger class.
    """
    fig, [[ax]] = make_panels(1, 1, 5.5, 1.3 + 0.42 * len(table))
    y = np.arange(len(table))
    ax.barh(y, table["test"].fillna(0), color="#0072B2", height=0.6)
    ax.errorbar(table["test"], y, xerr=table["spread"].fillna(0), fmt="none", ecolor="black", lw=2)
    for at, text in zip(y, map(_bar_label, table.to_dict("records")), strict=True):
        ax.text(1.04, at, text, va="center")
    report = [reference.get(name, np.nan) for name in table["baseline"]]
    ax.plot(report, y, **BAR, clip_on=False)
    ax.plot([], [], **BAR | {"ms": 10}, label="the report")
    _chance(ax.axvline, chance)
    seeds = " (mean ± standard deviation over the seeds)" if table["spread"].notna().any() else ""
    ax.set(xlim=(0, 1), yticks=y, yticklabels=table["baseline"], xlabel=f"test accuracy{seeds}")
    ax.invert_yaxis()
    ax.grid(False, axis="y")
    add_legend(fig, [ax])
    told = [f"{row['baseline']} {_bar_label(row)}" for row in table.to_dict("records")]
    fig.alt = f"Test accuracy, {select.count(len(table), 'bar')}: {'; '.join(told)}."
    return attach(fig, [ax])


def _bar_label(row: Mapping[Hashable, float]) -> str:
    if np.isnan(row["test"]):
        return f"diverged: {row['diverged']}"
    if np.isnan(row["spread"]):
        return f"{row['test']:.4f}"
    return f"{row['test']:.4f} ± {row['spread']:.4f}"


def _chance(line: Callable[..., object], chance: float | None) -> None:
    if chance is not None:
        line(chance, color="0.35", lw=1, ls=":", zorder=0.9, label="naming the larger class")


@rc_context(STYLE)
def accuracy_by(
    table: pd.DataFrame,
    axis: str,
    reference: Mapping[str, tuple[float, float]],
    chance: float | None = None,
) -> ReportFigure:
    """Validation and test accuracy by hyperparameter `axis`, with a panel for each baseline.

    `table` is that of `compare.runs`; baselines without `axis` are left out. Runs are faint points,
    and the line is their mean. It has a gap where a run diverged, which is marked at the bottom.
    `reference` holds, by baseline, a value of `axis` and the test accuracy that somebody else
    measured there. `chance` is the accuracy of always naming the larger class.
    """
    table = table[table[axis].notna()].astype({axis: float})
    names = list(dict.fromkeys(table["baseline"]))
    rows, cols = grid_shape(len(names), 3)
    fig, panels = make_panels(rows, cols, 3.3, 3.2, sharey=True, count=len(names))
    for ax, name in zip(panels.flat, names, strict=False):
        own = table[table["baseline"] == name]
        _accuracy_panel(ax, own, axis)
        if name in reference:
            x, y = reference[name]
            ax.plot([x], [y], **REPORT, label="the report (test)", zorder=4)
        _chance(ax.axhline, chance)
        ax.set_title(name)
        ax.set_xlabel(axis.replace("_", " "))
    bottom, top = panels[0, 0].get_ylim()
    panels[0, 0].set_ylim(bottom - 0.2 * (top - bottom), top)  # room for the marks of diverged runs
    for ax in panels[:, 0]:
        ax.set_ylabel("accuracy after the last epoch")
    add_legend(fig, panels.flat)
    fig.alt = (
        f"Validation and test accuracy against {select.words(axis)}, a panel for each of "
        f"{', '.join(names)}; the highest test accuracy is {number(table['test'].max())}."
    )
    return attach(fig, list(panels.flat[: len(names)]), cols)


def _accuracy_panel(ax: Axes, own: pd.DataFrame, axis: str) -> None:
    for split in ("validation", "test"):
        style = SPLITS[split]
        mean = own.groupby(axis)[split].apply(lambda values: values.mean(skipna=False))
        if own[axis].duplicated().any():
            ax.plot(own[axis], own[split], marker=style["marker"], color=style["color"],
                    ls="none", alpha=0.3, ms=4, label=f"{split}, each seed")  # fmt: skip
        ax.plot(mean.index, mean, label=split, **style)
    lost = own.loc[~own.index.isin(finished(own).index), axis].value_counts()
    bottom = ax.get_xaxis_transform()
    ax.plot(lost.index, np.full(len(lost), 0.04), "X", color="#CC0000", ms=7, transform=bottom,
            label="diverged" if len(lost) else "_")  # fmt: skip
    for x, count in lost.items():
        of = int((own[axis] == x).sum())
        ax.annotate(f"{count} of {of}", (float(str(x)), 0.04), xycoords=bottom, fontsize=8,
                    xytext=(0, 7), textcoords="offset points", ha="center")  # fmt: skip
    _ticks_at(ax, np.unique(own[axis]))


def _ticks_at(ax: Axes, values: np.ndarray) -> None:
    """Ticks at the values, and a log scale if it can show them."""
    if values.min() > 0:
        ax.set_xscale("log")
        ax.set_xmargin(0.1)
    ax.set_xticks(values)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: number(float(x))))
    ax.xaxis.set_minor_locator(NullLocator())


@rc_context(STYLE)
def pictures(
    images: Sequence[np.ndarray | None],
    titles: Sequence[str],
    captions: Sequence[str],
    explained: str,
) -> ReportFigure:
    """Images, uint8 (H, W, 3), in a row, with a title above and a caption below each.

    The pixels of small images show as squares. None stands for an image that could not be read.
    `explained`, below them all, says what titles and captions are.
    """
    fig, [panels] = make_panels(1, max(len(images), 3), 1.9, 2.7, count=len(images))
    fig.supxlabel(explained)
    for ax, image, title, caption in zip(panels, images, titles, captions, strict=False):
        if image is None:
            ax.text(0.5, 0.5, "the image\nis gone", ha="center", va="center", color="0.4")
            ax.set_box_aspect(1)
        else:
            small = max(image.shape[:2]) <= 128
            ax.imshow(image, interpolation="nearest" if small else "antialiased")
        ax.grid(False)
        ax.set(xticks=[], yticks=[], title=title, xlabel=caption)
        ax.spines[:].set_visible(image is None)
    fig.alt = f"{select.count(len(images), 'image')}: {'; '.join(titles)}. {explained}".replace(
        "\n", " "
    )
    return fig
