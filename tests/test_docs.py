"""The documentation: its code runs and prints what it shows, and the reference is complete."""

import re
from pathlib import Path

import mktestdocs
import pytest

import jaxexp as jx

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
WITH_CODE = [page for page in PAGES if "\n```python\n" in page.read_text(encoding="utf-8")]


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and content of every fenced block."""
    return FENCE.findall(page.read_text(encoding="utf-8"))


def shown(page: Path) -> list[str]:
    """The lines of the `text` blocks that follow a block of code."""
    pairs = zip(blocks(page), blocks(page)[1:], strict=False)
    return [
        line
        for (language, _), (after, content) in pairs
        if (language, after) == ("python", "text")
        for line in content.splitlines()
    ]


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_code_of_a_page_runs_and_prints_what_is_shown(page, tmp_path, monkeypatch, capsys):
    """The blocks of a page build on one another."""
    monkeypatch.chdir(tmp_path)
    mktestdocs.check_md_file(page, memory=True)
    printed = iter(capsys.readouterr().out.splitlines())
    for line in shown(page):
        assert line in printed, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_code_that_is_not_run_is_an_example_that_is(page):
    """Blocks of Python are run here, or are one of `docs/examples`, or one line of an import."""
    for language, content in blocks(page):
        if language == "py":
            included = re.fullmatch(r'--8<-- "(\w+\.py)"\n', content)
            assert content == "import jaxexp as jx\n" or (DOCS / "examples" / included[1]).is_file()
        else:
            assert language in ("python", "text", "console", ""), content


def test_every_public_name_is_in_the_reference():
    found = re.findall(r"^::: jaxexp\.(\w+)$", (DOCS / "reference.md").read_text(), re.MULTILINE)
    assert sorted(found) == sorted(jx.__all__)


def test_every_page_is_in_the_navigation():
    named = re.findall(r"(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(named) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))
