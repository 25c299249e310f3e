"""A figure of a plan, drawn into a file of the user's."""

from pathlib import Path
from typing import TYPE_CHECKING

from jaxexp.base.errors import UserError
from jaxexp.base.files import write_whole

if TYPE_CHECKING:
    from jaxexp.api import PlannedRun

KINDS = (".png", ".svg")


def check(file: Path, plans: int) -> None:
    """Raise UserError for a file that cannot be a figure of so many plans."""
    if file.suffix.lower() not in KINDS:
        raise UserError(f"--figure {file}: expected a name that ends with {' or '.join(KINDS)}")
    if not file.parent.is_dir():
        raise UserError(f"--figure {file}: expected a folder that is there, {file.parent} is not")
    if file.is_dir():
        raise UserError(f"--figure {file}: expected a file, this is a folder")
    if plans != 1:
        raise UserError(
            f"--figure {file}: expected one plan to draw, there are {plans}: name one sweep, or "
            "--section 6"
        )


def draw(planned: "PlannedRun", file: Path) -> None:
    """Draw what more or fewer programs would take.

    Raises UserError where there is nothing to draw, or the file cannot be written.
    """
    from jaxexp.report import figures

    try:
        figure = figures.tradeoff(planned.tradeoff())
    except UserError as error:
        raise UserError(f"--figure {file}: {error}") from error
    svg = file.suffix.lower() == ".svg"
    content = figures.to_svg(figure) if svg else figures.to_png(figure)
    try:
        write_whole(file, content)
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({error.strerror or error})") from error
