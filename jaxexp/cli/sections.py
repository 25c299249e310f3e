"""Sections of the report, and what a run reads."""

from collections.abc import Sequence
from pathlib import Path

from jaxexp.base.errors import UserError
from jaxexp.cli.exits import console
from jaxexp.cli.inputs import EMBEDDED_PIXELS, IMAGENET, PIXELS, Inputs, refuse
from jaxexp.reproduce import vision
from jaxexp.reproduce.report import SECTIONS


def asked_sections(asked: str | None) -> tuple[str, ...]:
    """The sections of the report that are meant, and can be done here."""
    if asked not in (None, "all", *SECTIONS):
        raise UserError(f"--section {asked!r}: expected one of {', '.join((*SECTIONS, 'all'))}")
    if asked == "6":
        return ("6",)
    missing = vision.missing_libraries()
    if missing and asked:
        raise UserError(f"--section {asked}: needs {', '.join(missing)}: {vision.INSTALL}")
    if missing:
        console.print(f"only section 6: section 7 needs {vision.INSTALL}")
        return ("6",)
    return ("7",) if asked == "7" else ("6", "7")


def seeds_of(sections: Sequence[str], asked: int | None, quick: bool) -> dict[str, int]:
    """How many seeds each sweep of the report is trained with."""
    return {
        name: asked or (1 if quick else SECTIONS[one].seeds)
        for one in sections
        for name in SECTIONS[one].sweeps
    }


def inputs_of(
    data: Path | None, images: Path | None, weights: str, image_size: int | None,
    skip_broken: bool, quick: bool,
) -> Inputs:  # fmt: skip
    """What the options of a command say is read."""
    size = image_size or (EMBEDDED_PIXELS if images is None or quick else PIXELS)
    return Inputs(
        data=data,
        images=images,
        weights=weights if weights == IMAGENET else str(Path(weights).resolve()),
        image_size=size,
        skip_broken=skip_broken,
        quick=quick,
    )


def check_inputs(inputs: Inputs, sections: Sequence[str]) -> None:
    """Refuse what the sections of the report do not read."""
    reads = {"6": {"data"}, "7": {"images", "weights", "image_size", "skip_broken"}}
    for section in reads.keys() - sections:
        refuse(inputs, reads[section], f"section {' '.join(sections)}")
