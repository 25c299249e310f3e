import base64
import dataclasses
import gzip
import json
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from datasets import REGRESSION, dataset
from matplotlib.figure import Figure

from jaxexp.report.figures import to_png
from jaxexp.report.page import Meta, Picture, Section, _cells, duration, render, run_facts
from jaxexp.results.facts import host_facts, plan_id
from jaxexp.spec.sweep import Sweep, Verdict
from jaxexp.spec.trial import MLPTrial

VOID = {"meta", "img", "br", "hr", "link"}


def section(**options: object) -> Section:
    values: dict = {
        "row": "6.1.2.1",
        "title": "Learning rate",
        "question": "Which learning rate is best?",
        "answer": "The best is 0.001, at 0.25 nats. It beats e.g. 1 and 0.01.",
        "figures": [Picture(to_png(Figure(figsize=(6, 3))), "Loss by epoch")],
        "reference": "lr = 1 wanders around 3.3",
        "seconds": 83.0,
    }
    return Section(**(values | options))


def page(*sections: Section, **meta: object) -> str:
    values: dict = {"title": "Places", "summary": "Two sentences.", "facts": {"Trials": "4"}}
    return render(sections, Meta(**(values | meta)))


class Elements(HTMLParser):
    """Collects the elements of a page and checks that each is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_section_shows_all_that_it_has() -> None:
    html = page(section(notes=["learning rate 1 diverged in epoch 3"]))
    for text in ("6.1.2.1", "Which learning rate is best?", "at 0.25 nats", "1 min 23 s",
                 "Reference: lr = 1 wanders around 3.3", "diverged in epoch 3"):  # fmt: skip
        assert text in html


def test_the_page_needs_nothing_from_outside() -> None:
    html = page(section(tables={"": pd.DataFrame({"a": [1]})}), plan="1 program")
    elements = Elements(html).found
    assert {tag for tag, _ in elements}.isdisjoint({"link", "iframe"})
    policy = next(a["content"] for t, a in elements if t == "meta" and "http-equiv" in a)
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data: blob:;")
    sources = [attrs.get("src") or attrs.get("href") for _, attrs in elements]
    assert all(s.startswith(("data:image/png;base64,", "#")) for s in sources if s)
    assert not re.search(r"url\(|@import|https?://", html)


def test_every_text_is_escaped() -> None:
    evil = "<script>alert(1)</script>"
    table = pd.DataFrame({evil: [evil]})
    html = page(
        section(title=evil, answer=evil, reference=evil, notes=[evil], tables={evil: table},
                figures=[Picture(to_png(Figure(figsize=(1, 1))), '"' + evil)]),
        facts={evil: evil}, plan=evil, missing={evil: evil},
    )  # fmt: skip
    assert "<script>alert" not in html
    assert "&lt;script&gt;" in html
    image = next(attrs for tag, attrs in Elements(html).found if tag == "img")
    assert image["alt"] == '"' + evil


def test_images_have_words_and_their_size() -> None:
    image = next(attrs for tag, attrs in Elements(page(section())).found if tag == "img")
    assert (image["alt"], image["width"], image["height"]) == ("Loss by epoch", "600", "300")


def test_the_facts_name_the_folds_of_cross_validation() -> None:
    assert run_facts([dataset({"fold": [0, 1, 2, 4]})])["Folds"] == "0 to 2, 4"
    assert not {"Fold", "Folds"} & set(run_facts([dataset()]))


def test_the_summary_links_each_row_and_gives_the_short_answer() -> None:
    html = page(section(), section(row="6.2", answer="Only one."))
    summary = html[html.index("<nav") : html.index("</nav>")]
    assert 'href="#row-6.1.2.1"' in summary
    assert 'id="row-6.2"' in html
    alike = page(section(row="6.2"), section(row="6.2"))
    assert 'href="#row-6.2"' in alike
    assert 'href="#row-6.2~2"' in alike
    assert 'id="row-6.2~2"' in alike
    assert "at 0.25 nats." in summary
    assert "It beats" not in summary


def test_tables_line_up_and_say_what_is_missing() -> None:
    table = pd.DataFrame(
        {
            "batch": [1, 106_897],
            "val acc": [0.6221, np.nan],
            "seconds": [152.7, 12.3456789],
            "momentum": [0.9, 0.99999],
            "learning rate": [1.0, 1e-5],
            "batch norm": [True, False],
        }
    )
    table.attrs["hyperparameters"] = ["momentum"]
    html = page(section(tables={"": table}))
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", html[html.index('<table class="numbers"') :])
    assert cells[:6] == ["1", "0.6221", "152.7", "0.9", "1", "on"]
    assert cells[6:] == ["106,897", "–", "12.3", "0.99999", "1e-5", "off"]


def test_a_named_index_is_a_column_and_a_plain_one_is_not() -> None:
    named = pd.DataFrame({"loss": [0.5]}, index=pd.Index(["best"], name="trial"))
    assert ">trial</th>" in page(section(tables={"": named}))
    assert ">index</th>" not in page(section(tables={"": named.reset_index()}))


def test_several_tables_have_captions() -> None:
    one, two = pd.DataFrame({"a": [1]}), pd.DataFrame({"b": [2]})
    html = page(section(tables={"": one, "The second": two}))
    assert len(re.findall('<table class="numbers"', html)) == 2
    assert re.findall("<caption><span[^>]*>(.*?)</span></caption>", html) == ["The second"]
    assert html.index('aria-label="Learning rate"') < html.index("The second")  # has no caption
    assert re.findall(r'<th scope="col" class=n>(.)</th>', html) == ["a", "b"]


def test_sweeps_that_did_not_run_are_told_with_the_reason() -> None:
    html = page(missing={"fine_tuning": "no weights", "probing": "no weights", "x": "no images"})
    Elements(html)
    told = re.sub(r"<[^>]*>|\s+", " ", html[html.index('class="missing" role') :])
    told = " ".join(told.split()).replace(" ,", ",").replace(" :", ":")
    assert "3 sweeps did not run:" in told
    assert "fine tuning, probing: no weights" in told
    assert "x: no images" in told
    assert "One sweep did not run:" in page(missing={"x": "no images"})
    assert "did not run" not in page()


def test_a_page_without_sections_or_extras_is_whole() -> None:
    Elements(page(facts={}))
    bare = Section(row="1", title="t", question="q", answer="a")
    html = page(bare)
    Elements(html)
    assert "Reference:" not in html
    assert "Trained in" not in html


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.84, "0.8 s"), (9.96, "10 s"), (59.7, "1 min 0 s"), (200, "3 min 20 s"),
     (7500, "2 h 5 min"), (float("nan"), "–")],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_run_facts_are_those_of_the_plan_that_the_sweeps_share() -> None:
    attrs = {
        "plan": "a", "plan_trials": 7, "programs": 2, "wall_seconds": 50.0, "devices": 1,
        "device": "cpu", "data": "europe", "data_fingerprint": "abc", "seed": 0,
        "jaxexp": "0.1.0", "jax": "0.8.0", "started": "2026-01-02T03:04:05+00:00",
    }  # fmt: skip
    later = {"seed": 1, "wall_seconds": 100.0, "sweep": "later"}
    facts = run_facts([xr.Dataset(attrs=attrs), xr.Dataset(attrs=attrs | later)])
    assert facts["Trials"] == "7"
    assert facts["Wall-clock"] == "1 min 40 s, compilation included"
    resumed = run_facts([xr.Dataset(attrs=attrs | {"resumed": 1})])["Wall-clock"]
    assert resumed == "50 s, compilation included; of what was resumed, since then alone"
    assert facts["Data"] == "europe (fingerprint abc)"
    assert facts["Seeds"] == "0, 1"
    assert facts["Started"] == "2026-01-02 03:04 UTC"


def test_run_facts_of_several_plans_add_up() -> None:
    attrs = {
        "plan": "a", "plan_trials": 7, "programs": 2, "wall_seconds": 50.0, "devices": 1,
        "device": "cpu", "data": "europe", "data_fingerprint": "abc", "seed": 0,
        "jaxexp": "0.1.0", "jax": "0.8.0", "started": "2026-01-02T03:04:05+00:00",
    }  # fmt: skip
    other = {"plan": "b", "plan_trials": 5, "programs": 0, "wall_seconds": 20.0, "data": "cats"}
    facts = run_facts([xr.Dataset(attrs=attrs), xr.Dataset(attrs=attrs | other)])
    assert (facts["Trials"], facts["Programs compiled"]) == ("12", "2")
    assert facts["Wall-clock"].startswith("1 min 10 s")
    assert facts["Data"] == "europe (fingerprint abc); cats (fingerprint abc)"


def test_run_facts_of_runs_whose_plans_read_alike_add_up() -> None:
    attrs = {"plan": "a", "plan_trials": 7, "sweep": "rates", "data_fingerprint": "abc"}
    others = [attrs, attrs | {"sweep": "widths", "data_fingerprint": "def"}]
    facts = run_facts([xr.Dataset(attrs=own) for own in (attrs, *others)])
    assert facts["Trials"] == "21"


def test_run_facts_of_runs_of_different_sweeps_add_up() -> None:
    first, second = (
        Sweep(MLPTrial(), {"learning_rate": [rate]}, name=str(rate)) for rate in (0.1, 0.2)
    )
    again = dataclasses.replace(first, name="again")
    plans = [[first], [second], [again], [first, second], [first, second]]
    made = [
        xr.Dataset(attrs=host_facts("a", own[-1]) | {"plan_id": plan_id(own), "sweep": str(place)})
        for place, own in enumerate(plans)
    ]
    assert run_facts(made)["Trials"] == "4"


def test_run_facts_need_neither_classes_nor_a_fingerprint() -> None:
    ds = dataset(metrics=REGRESSION, seeds="[0, 1, 2, 3, 7]", train_evaluation="a sample of 512")
    facts = run_facts([ds])
    assert facts == {
        "Trials": "3", "Programs compiled": "1", "Wall-clock": "3.0 s, compilation included",
        "Device": "1 × cpu", "Data": "arrays", "Training metrics": "a sample of 512",
        "Seeds": "0 to 3, 7", "Versions": "jaxexp 0.1.0, JAX 0.8.0",
        "Started": "2026-01-02 03:04 UTC",
    }  # fmt: skip
    assert "ln K" in run_facts([dataset()])["Units"]
    assert run_facts([xr.Dataset()]) == {}
    many = run_facts([dataset(seeds=str(list(range(0, 100, 2))))])["Seeds"]
    assert many == "0, 2, 4, 6, 8, 10, 12, 14, … (50 in all)"


def test_a_quick_run_is_said_above_all_and_beside_what_others_measured() -> None:
    html = page(section(quick=2))
    Elements(html)
    text = " ".join(re.sub(r"<[^>]*>", " ", html).split())
    assert "A quick run: every trial stopped after 2 epochs at most" in text
    assert "wanders around 3.3 (This quick run stopped after 2 epochs at most.)" in text
    assert "stopped after 1 epoch at most" in page(section(), quick=1)
    assert "quick run" not in page(section())
    assert run_facts([dataset(quick=2)])["Quick run"] == "stopped at 2 epochs a trial"


def test_rates_are_never_shown_as_0() -> None:
    def cells(*values: float) -> list[str]:
        html = page(section(tables={"": pd.DataFrame({"v": values})}))
        return re.findall(r"<td[^>]*>([^<]*)</td>", html[html.index('<table class="numbers"') :])

    assert cells(1e-2, 1e-3, 1e-4, 1e-5) == ["0.01", "0.001", "0.0001", "1e-5"]
    assert cells(1e-5, 2e-5) == ["1e-5", "2e-5"]
    assert cells(0.9, 0.02) == ["0.90", "0.02"]
    assert cells(-0.004, 0.0312) == ["−0.0040", "0.0312"]
    assert cells(1e29, 1.0) == ["1e29", "1"]


def test_a_long_table_says_that_it_scrolls() -> None:
    html = page(section(tables={"All": pd.DataFrame({"a": range(48)})}))
    assert 'All<span class="hint"> (48 rows: scroll to see them all)</span>' in html
    assert "scroll to see" not in page(section(tables={"": pd.DataFrame({"a": range(3)})}))


def test_cells_may_hold_anything() -> None:
    table = pd.DataFrame({"a": [[1, 2], None, pd.NA, {"b": 1}]})
    assert "[1, 2]" in page(section(tables={"": table}))


def test_a_quick_run_is_held_against_no_reference() -> None:
    judged = {"reference": "so", "verdict": Verdict(True, "it is so.")}
    assert section(**judged).judgement == ("agrees", "agrees", "it is so.")
    assert section(**judged, quick=2).judgement == ("unknown", "not compared", "a quick run")


def test_sections_that_share_a_sweep_say_so() -> None:
    html = page(section(shared="one sweep that answers rows 1 and 2"))
    assert "all trials added up: one sweep that answers rows 1 and 2." in html


def test_a_row_that_only_repeats_the_title_is_left_out() -> None:
    html = page(section(row="my_widths", title="my widths"))
    assert "<h2>my widths</h2>" in html
    assert ">my widths</a>" in html
    assert 'id="row-my_widths"' in html


def test_a_standard_deviation_stands_in_the_cell_of_its_mean() -> None:
    table = pd.DataFrame({"loss": [0.2431, 0.5], "± loss": [0.004, np.nan], "± other": [1, 2]})
    html = page(section(tables={"": table}))
    assert re.findall(r'<th scope="col"[^>]*>([^<]*)</th>', html)[3:] == ["loss", "± other"]
    body = html[html.index('<table class="numbers"') :]
    assert re.findall(r"<td[^>]*>([^<]*)</td>", body) == [
        "0.2431 ± 0.0040", "1", "0.5000", "2",
    ]  # fmt: skip


def test_verdicts_stand_in_the_summary_with_their_reasons() -> None:
    html = page(
        section(verdict=Verdict(True, "both are best at 0.001.")),
        section(row="2", verdict=Verdict(False, "ours is best at 64.")),
        section(row="3", verdict=Verdict(None, "two epochs are too few.")),
        section(row="4", errors=["`verdict` of question 4 failed: KeyError"]),
        section(row="5", reference=""),
    )
    Elements(html)
    summary = html[html.index("<nav") : html.index("</nav>")]
    text = " ".join(re.sub(r"<[^>]*>", " ", summary).split())
    assert (
        "Against the reference: of 4 answers, 1 agrees, 1 differs, 1 cannot be compared, 1 where "
        "the comparison failed." in text
    )
    assert "agrees: both are best at 0.001." in text
    assert "differs: ours is best at 64." in text
    assert "cannot be compared: two epochs are too few." in text
    assert text.count("the comparison failed") == 2
    assert "Against" not in page(section(), section(row="2"))


def test_interactive_figures_are_embedded_once_and_compressed() -> None:
    twin = {"data": [], "layout": {"meta": {"width": 600}}}
    picture = Picture(to_png(Figure(figsize=(6, 3))), "Loss by epoch", twin)
    html = page(section(figures=[picture, picture]), section(row="2", figures=[picture]))
    assert re.findall(r'data-plot="(\d)"', html) == ["0", "1", "2"]
    assert html.count('id="packed-plotly"') == 1
    [packed] = re.findall('id="packed-figures">(.*?)</script>', html)
    assert json.loads(gzip.decompress(base64.b64decode(packed))) == [twin] * 3
    assert len(html) < 2_300_000
    assert "packed" not in re.sub(r"<script>.*?</script>", "", page(section()), flags=re.S)


def test_a_spread_beside_an_exponent_has_one_too() -> None:
    table = pd.DataFrame({"loss": [6.574e29, 0.5], "± loss": [1.763e28, 1e20]})
    assert _cells(table)["body"] == [("6.574e29 ± 1.8e28",), ("0.5 ± 1e20",)]


def test_values_in_a_narrow_range_have_the_digits_that_tell_them_apart() -> None:
    table = pd.DataFrame({"loss": [1000.01, 1000.02, 1000.04], "r2": [0.91, 0.92, 0.9]})
    body = [("1,000.01", "0.91"), ("1,000.02", "0.92"), ("1,000.04", "0.90")]
    assert _cells(table)["body"] == body
    rounding = pd.DataFrame({"accuracy": [0.84, 0.84000003]})
    assert _cells(rounding)["body"] == [("0.84",), ("0.84",)]


def test_the_summary_says_once_what_a_spread_is() -> None:
    for over in ("3 seeds", "5 folds", "2 seeds × 4 folds", "2 to 5 seed-fold pairs"):
        answer = f"The lowest loss is 0.2 ± 0.1 (mean ± standard deviation over {over}): width 8."
        section = Section(row="r", title="t", question="q", answer=answer)
        assert section.short_answer == "The lowest loss is 0.2 ± 0.1: width 8."
