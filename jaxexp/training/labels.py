"""Labels of classes: checked before anything is trained, since no gradient would complain."""

import numpy as np

from jaxexp.base.errors import UserError
from jaxexp.base.words import type_of
from jaxexp.training.data import Data, Examples


def check_labels(data: Data, classes: int | None = None) -> int:
    """The number C of classes of data whose targets are labels 0 to C - 1.

    C is `classes`, or the number of the data's class names, or one more than the largest label.

    Raises UserError for targets that are not labels, labels out of range, and classes without an
    example in the training split.
    """
    if not isinstance(data.train, Examples):
        raise UserError(
            f"train is {type_of(data.train)}, expected jaxexp.Examples(x, y) with labels"
        )
    named = None if data.classes is None else len(data.classes)
    if classes is not None and named not in (None, classes):
        raise UserError(f"classes={classes}: the data have {named} classes")
    for split, examples in data.splits.items():
        _check_integers(f"{split}.y", examples.y)
    expected = classes or named or int(data.train.y.max()) + 1
    for split, examples in data.splits.items():
        wrong = np.flatnonzero((examples.y < 0) | (examples.y >= expected))
        if wrong.size:
            row = int(wrong[0])
            raise UserError(
                f"{split}.y, row {row}: the label is {examples.y[row]}, expected 0 to "
                f"{expected - 1} ({expected} classes); labels of another kind are numbered by "
                "jaxexp.arrays(…, classes='infer')"
            )
    missing = np.setdiff1d(np.arange(expected), data.train.y)
    if expected < 2 or missing.size:
        absent = f"label {missing[0]} does not occur" if missing.size else "there is one class"
        raise UserError(
            f"train.y: {absent}, expected examples of 2 classes or more, labelled 0 to "
            f"{max(1, expected - 1)}; jaxexp.arrays(…, classes='infer') numbers the labels that "
            "there are"
        )
    return expected


def _check_integers(name: str, y: object) -> None:
    y_N = np.asarray(y) if y is not None else None
    if y_N is None or y_N.ndim != 1 or y_N.dtype.kind not in "iu":
        found = "nothing" if y_N is None else f"{y_N.dtype} of the shape {y_N.shape}"
        raise UserError(f"{name}: found {found}, expected one whole number for each example")
