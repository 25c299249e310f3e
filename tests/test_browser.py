"""The page in a browser: it draws, asks nothing of any network, and everybody can use it."""

import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from datasets import dataset, of_sweep, population

from jaxexp.cli import library
from jaxexp.report import figures, page, sections
from jaxexp.results import seeds, select
from jaxexp.spec.sweep import Verdict

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe = pytest.importorskip(
    "axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed"
)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on the PATH"),
]
DRAWN = "document.querySelectorAll('figure.drawn').length"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of a random search, and of one figure of each kind that it has not."""
    rng = np.random.default_rng(0)
    points = {"learning_rate": 10 ** rng.uniform(-5, 0, 40), "width": rng.integers(4, 99, 40),
              "optimizer": rng.choice(["adam", "sgd"], 40).tolist()}  # fmt: skip
    search = dataset(
        {"point": points}, loss=-np.log10(points["learning_rate"]), splits=["train"],
        metrics={"loss": ("lower", "")}, diverged=np.where(np.arange(40) == 7, 2, 0),
    )  # fmt: skip
    seeded = dataset({"width": [4, 8], "depth": [1, 2], "seed": [0, 1]}, layers=2)
    drawn = [
        figures.heat_map(seeded, "width", "depth"),
        figures.splits(seeded, ["loss"]),
        figures.bars(seeded),
        figures.gradient_norms(seeded.isel(depth=0)),
        figures.lineage(population(4)),
        figures.lineage(population(48)),
        figures.regions(of_sweep(library.load("sines"), {})),
    ]
    judged = page.Section(
        row="7", title="Judged", question="Is it so?", answer="It is so.", reference="so",
        verdict=Verdict(False, "it is not so."),
        figures=[page.Picture(figures.to_png(f, dpi=30), f.alt, f.interactive) for f in drawn],
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "to_png", partial(figures.to_png, dpi=30))
        general = sections.in_general(search, lambda name, png: None, "search")
    meta = page.Meta(
        title="All of it",
        summary="Two sentences.",
        facts=page.run_facts([search]),
        plan="1 program",
    )
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page.render([general, judged], meta))
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


class Tab:
    """A page at some width, and what it did that it should not."""

    def __init__(self, browser: Any, report: Path, width: int, **options: Any) -> None:
        context = browser.new_context(viewport={"width": width, "height": 800}, **options)
        self.page = context.new_page()
        self.complaints: list[str] = []
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._told)
        self.page.on("request", self._asked)
        self.page.goto(report.as_uri())

    def _told(self, message: Any) -> None:
        if message.type == "error" or "picture stays" in message.text:
            self.complaints.append(message.text)

    def _asked(self, request: Any) -> None:
        if not request.url.startswith(("file:", "data:", "blob:")):
            self.complaints.append(request.url)

    def draw(self) -> int:
        """Draw all figures; returns how many there are."""
        self.page.evaluate("window.drawAllFigures()")
        return self.page.evaluate("document.querySelectorAll('figure[data-plot]').length")

    def findings(self) -> list[str]:
        """What axe finds that is serious or critical."""
        found = axe.Axe().run(self.page).response["violations"]
        return [
            f"{finding['id']}: {node['html'][:150]}"
            for finding in found
            if finding["impact"] in ("serious", "critical")
            for node in finding["nodes"]
        ]


@pytest.fixture(scope="module")
def wide(browser: Any, report: Path) -> Tab:
    """The page on a desktop."""
    return Tab(browser, report, 1280)


def pictured(browser: Any, folder: Path, drawn: Sequence[figures.ReportFigure], width: int) -> Tab:
    """A page of these figures alone."""
    pictures = [page.Picture(figures.to_png(f, dpi=30), f.alt, f.interactive) for f in drawn]
    section = page.Section(row="1", title="Drawn", question="?", answer="Yes.", figures=pictures)
    path = folder / "drawn.html"
    path.write_text(page.render([section], page.Meta(title="Drawn", summary="")))
    tab = Tab(browser, path, width)
    tab.draw()
    return tab


def check(tab: Tab, width: int) -> None:
    count = tab.draw()
    assert count == 13
    assert tab.page.evaluate(DRAWN) == count
    sizes = tab.page.evaluate(
        "[...document.querySelectorAll('figure.drawn .plot')].map((plot) => {"
        " const box = plot.querySelector('.main-svg').getBoundingClientRect();"
        " return [box.width, box.height, plot.getBoundingClientRect().right]; })"
    )
    assert all(w > 200 and h > 100 and right <= width for w, h, right in sizes)
    assert not tab.page.locator("figure.drawn img").first.is_visible()
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.findings() == []
    assert tab.complaints == []


def test_every_figure_is_drawn_and_anybody_can_read_it(wide):
    check(wide, 1280)


def test_so_it_is_on_a_dark_telephone(browser, report):
    tab = Tab(browser, report, 390, color_scheme="dark")
    check(tab, 390)
    coordinates = tab.page.locator(".plot", has=tab.page.locator(".parcoords"))
    width, shown = coordinates.first.evaluate("(plot) => [plot.scrollWidth, plot.clientWidth]")
    assert width > shown + 40  # it scrolls, so that the numbers of an axis reach no other
    tab.page.evaluate("document.documentElement.removeAttribute('lang')")
    assert tab.findings()[0].startswith("html-has-lang")  # axe looks indeed


def test_the_pictures_are_printed(wide):
    wide.draw()
    wide.page.emulate_media(media="print")
    assert all(image.is_visible() for image in wide.page.locator("figure img").all())
    assert not any(plot.is_visible() for plot in wide.page.locator(".plot").all())
    wide.page.emulate_media(media="screen")


def test_without_a_script_the_pictures_are_there(browser, report):
    tab = Tab(browser, report, 1280, java_script_enabled=False)
    images = tab.page.locator("figure img")
    assert images.count() >= 10
    assert all(image.is_visible() for image in images.all())
    assert not any(plot.is_visible() for plot in tab.page.locator(".plot, .legend").all())
    assert tab.page.locator("table.numbers tbody tr").last.is_visible()


def test_the_legend_switches_a_curve_off_and_on_by_keyboard(wide):
    tab = wide
    tab.draw()
    button = tab.page.locator("figure.drawn .legend button").first
    figure = tab.page.locator("figure.drawn").first
    before = figure.locator(".scatterlayer .trace").count()
    button.focus()
    tab.page.keyboard.press("Enter")
    assert button.get_attribute("aria-pressed") == "false"
    tab.page.wait_for_function(
        "(n) => document.querySelector('figure.drawn').querySelectorAll('.scatterlayer .trace')"
        ".length < n",
        arg=before,
    )
    tab.page.keyboard.press("Enter")
    assert button.get_attribute("aria-pressed") == "true"


def test_the_legend_shows_the_marks_of_the_figure(browser, tmp_path):
    ds = dataset({"optimizer": ["adam", "sgd"], "learning_rate": [0.1, 0.01]})
    tab = pictured(browser, tmp_path, [figures.final_by(ds, "optimizer")], 1280)
    marks = tab.page.evaluate(
        "[...document.querySelectorAll('.legend button')].map((button) => {"
        " const mark = button.querySelector('.swatch'), style = getComputedStyle(mark);"
        " return [button.textContent.split(' ')[0], mark.className, style.clipPath]; })"
    )
    shown = {name + str(i): (shape, clip) for i, (name, shape, clip) in enumerate(marks)}
    assert shown["each0"] == ("swatch dot", "none")
    assert shown["mean1"] == ("swatch", "none")  # a line
    shape, clip = shown["best2"]
    assert shape == "swatch shape"
    assert clip.count(",") == 2  # a triangle
    assert shown["best3"] == ("swatch ring", "none")


def test_the_pointer_is_told_which_trial_it_is_over(wide):
    tab = wide
    tab.draw()
    tab.page.evaluate(
        "Plotly.Fx.hover(document.querySelector('figure.drawn .plot'), [{curveNumber: 1, "
        "pointNumber: 2}])"
    )
    told = tab.page.locator(".hoverlayer .hovertext").first.text_content()
    assert "learning rate" in told
    assert "epoch 3" in told


def test_the_table_of_all_trials_is_sorted_and_filtered(wide):
    tab = wide
    holder = tab.page.locator(".table", has=tab.page.locator("text=All 40 trials")).first
    rows = holder.locator("tbody tr:visible")
    assert rows.count() == 20
    head = holder.locator("th", has_text="width")
    head.get_by_role("button").focus()
    tab.page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    column = [int(text) for text in rows.locator("td:nth-child(3)").all_text_contents()]
    assert column == sorted(column)
    tab.page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    column = [int(text) for text in rows.locator("td:nth-child(3)").all_text_contents()]
    assert column == sorted(column, reverse=True)
    tab.page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") is None
    assert rows.first.locator("td").first.text_content() == "1"
    holder.get_by_role("button", name="Show all").click()
    assert rows.count() == 40
    holder.get_by_role("searchbox").fill("sgd diverged")
    found = rows.all_text_contents()
    assert all("sgd" in text and "diverged" in text for text in found)
    assert f"{len(found)} of {len(found)} rows shown" in holder.get_by_role("status").text_content()


def test_the_picture_stays_where_a_figure_cannot_be_drawn(browser, report, tmp_path):
    html = report.read_text()
    start = html.index('id="packed-figures">') + len('id="packed-figures">')
    broken = tmp_path / "broken.html"
    broken.write_text(html[:start] + "AAAA" + html[start + 4 :])
    tab = Tab(browser, broken, 1280)
    tab.draw()
    assert tab.page.evaluate(DRAWN) == 0
    assert tab.page.locator("figure img").first.is_visible()
    assert any("picture stays" in complaint for complaint in tab.complaints)


def test_titles_and_ticks_of_awkward_numbers_do_not_meet(browser, tmp_path):
    long = "a metric with a name that takes three lines or so beside an axis of this height"
    huge = dataset(
        {"learning_rate": [1e-2, 0.1, 5.0, 1e3, 1e8]}, diverged=[0, 0, 2, 2, 2],
        metrics={"loss": ("lower", "nats"), long: ("lower", "")}, loss=np.linspace(1e30, 9e30, 5),
    )  # fmt: skip
    drawn = [figures.curves(huge), figures.final_by(huge, "learning_rate", ["loss", long])]
    pictures = [page.Picture(figures.to_png(f, dpi=30), f.alt, f.interactive) for f in drawn]
    section = page.Section(row="1", title="Huge", question="?", answer="Yes.", figures=pictures)
    path = tmp_path / "huge.html"
    path.write_text(page.render([section], page.Meta(title="Huge", summary="")))
    tab = Tab(browser, path, 1280)
    tab.draw()
    gaps = title_gaps(tab)
    assert len(gaps) == 3
    assert min(gaps) > 0
    texts = tab.page.locator(".xtick text").all_text_contents()
    assert sum("div." in text or "diverged" in text for text in texts) >= 3


def test_long_names_are_whole_on_a_telephone(browser, tmp_path):
    long, value = (
        "a_rather_long_hyperparameter_name_that_somebody_took",
        "sehr, sehr groß <&> wertvoll",
    )
    ds = dataset(
        {long: [0.1, 0.2], "kind": ["klein", value], "seed": [0, 1]},
        values={"accuracy": 0.6 + np.linspace(0, 0.1, 8)},
    )  # fmt: skip
    table = pd.DataFrame({"name": [long, "kind"], "drop": [0.5, 0.1]})
    drawn = [
        figures.importances(table, ""), figures.heat_map(ds, long, "kind"),
        figures.heat_map(ds, "kind", long), figures.final_by(ds, "kind", "accuracy"),
    ]  # fmt: skip
    tab = pictured(browser, tmp_path, drawn, 390)
    ends = tab.page.evaluate(
        "[...document.querySelectorAll('.ytick text, .xtick text')].map((text) => {"
        " const box = text.getBoundingClientRect();"
        " const whole = text.closest('.plot').getBoundingClientRect();"
        " return [box.left - whole.left, whole.right - box.right]; })"
    )
    assert min(min(end) for end in ends) >= 0
    texts = tab.page.locator(".xtick text").all_text_contents()
    assert sum("<&>" in text for text in texts) == 2
    assert min(title_gaps(tab)) > 0


def test_names_of_parallel_axes_are_level_where_they_have_room(browser, tmp_path):
    long = "a_rather_long_hyperparameter_name"
    for name, width, angle in (("width", 1280, 0), (long, 390, -12)):
        ds = dataset({name: [4, 8], "kind": ["a", "b"], long + "_more": [1, 2]})
        tab = pictured(browser, tmp_path, [figures.parallel(ds)], width)
        drawn = tab.page.locator(".plot", has=tab.page.locator(".parcoords"))
        assert drawn.evaluate("(plot) => plot.data[0].labelangle") == angle


def title_gaps(tab: Tab) -> list[float]:
    """How many pixels there are between the title of each height and its ticks."""
    return tab.page.evaluate(
        "[...document.querySelectorAll('figure.drawn .plot')].flatMap((plot) =>"
        " [...plot.querySelectorAll('text[class^=y][class*=title]')].map((title) => {"
        " const panel = title.getAttribute('class').match(/y\\d*title/)[0].slice(0, -5);"
        " const ticks = [...plot.querySelectorAll(`.${panel}tick text`)];"
        " return Math.min(...ticks.map((t) => t.getBoundingClientRect().left))"
        "  - title.getBoundingClientRect().right; }))"
    )


def test_many_values_are_told_apart_on_a_dark_telephone(browser, tmp_path):
    ds = dataset({
        "learning_rate": [0.001, 0.003, 0.01, 0.03, 0.1, 0.3], "optimizer": ["adam", "sgd"],
        "activation": ["relu", "tanh"], "width": [8, 16],
    })  # fmt: skip
    drawn = [figures.heat_map(ds, "learning_rate", "optimizer"), figures.parallel(ds)]
    pictures = [page.Picture(figures.to_png(f, dpi=30), f.alt, f.interactive) for f in drawn]
    section = page.Section(row="1", title="Grid", question="?", answer="Yes.", figures=pictures)
    path = tmp_path / "grid.html"
    path.write_text(page.render([section], page.Meta(title="Grid", summary="")))
    tab = Tab(browser, path, 390, color_scheme="dark")
    tab.draw()
    texts = tab.page.locator(".xtick text")
    assert texts.all_text_contents() == ["0.001", "0.003", "0.01", "0.03", "0.1", "0.3"]
    boxes = tab.page.evaluate(
        "[...document.querySelectorAll('.xtick text, .textpoint text')].map((text) => {"
        " const { left, right, top, bottom } = text.getBoundingClientRect();"
        " return [left, right, top, bottom]; })"
    )
    for i, (left, right, top, bottom) in enumerate(boxes):
        for a, b, c, d in boxes[:i]:
            assert right <= a or b <= left or bottom <= c or d <= top
    coordinates = tab.page.locator(".plot", has=tab.page.locator(".parcoords"))
    scale = coordinates.evaluate("(plot) => plot.data[0].line.colorscale.map((part) => part[1])")
    lights = [brightness(colour) for colour in scale]
    assert lights == sorted(lights)
    assert lights[0] > 0.35
    assert "scroll sideways" in coordinates.text_content()


def brightness(colour: str) -> float:
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return 0.3 * red + 0.59 * green + 0.11 * blue


def test_a_table_of_two_metrics_on_three_splits_fits_a_desktop(browser, tmp_path):
    """With means over seeds: its heads are wrapped, and nothing is scrolled sideways."""
    ds = dataset(
        {"shape": {"depth": range(1, 9), "width": range(10, 18)}, "seed": [0, 1]},
        metrics={"loss": ("lower", "nats"), "accuracy": ("higher", "")},
        splits=["train", "validation", "test"],
    )
    section = page.Section(
        row="1", title="Wide", question="?", answer="Yes.",
        tables={"": select.table(seeds.average(ds))},
    )  # fmt: skip
    path = tmp_path / "wide.html"
    path.write_text(page.render([section], page.Meta(title="Wide", summary="")))
    table = Tab(browser, path, 1280).page.locator("section .scroll")
    assert table.locator("th").count() == 9
    assert table.evaluate("(box) => box.scrollWidth - box.clientWidth") == 0
