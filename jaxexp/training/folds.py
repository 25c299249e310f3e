"""Cross-validation: folds of the training examples, each of which a trial may train on."""

from collections.abc import Iterable, Sequence

import numpy as np

from jaxexp.base.errors import UserError
from jaxexp.base.numbers import checked_int, is_int
from jaxexp.base.words import count, type_of
from jaxexp.spec.arguments import refuses_unknown_arguments
from jaxexp.training.checks import row_count
from jaxexp.training.data import Data, Examples


@refuses_unknown_arguments
def folds(data: Data, folds: int | Iterable[tuple[object, object]], *, seed: int = 0) -> Data:
    """The same data, cross-validated: `Trial.fold` says which fold a trial trains on.

    An axis `{"fold": range(5)}` trains a setting on each of five folds, in the same programs as
    all others, and results have a dimension `fold`. Each device holds one copy of the data. The
    validation split of a trial is what its fold leaves out. A test split is unaffected.

    A trial trains on its fold as it would on these rows alone, whatever the sizes of the other
    folds: it takes as many steps as its rows have batches, and waits while larger folds go on.

    Args:
        data: with a training split and no validation split.
        folds: how many, drawn from `numpy.random.default_rng(seed)`: every class (of targets that
            are whole numbers, (N,)) is spread evenly over them. Or, for each fold, its rows to
            train on and those to validate on, as the splitters of scikit-learn yield them.
        seed: the seed of folds that are drawn.

    Raises:
        UserError: fewer than 2 folds, more folds than examples of a class, rows that do not exist,
            a fold that lacks a class in training, or one of whose parts no weight is above 0.

    >>> import jaxexp as jx
    >>> data = jx.arrays([[0.0], [1.0], [2.0], [3.0]] * 6, [0, 0, 1, 1] * 6, validation=None)
    >>> folded = jx.folds(data, 3)
    >>> folded
    Data(train: 16 examples, validation: 8 examples, 3 folds)
    >>> base = jx.MLPTrial(epochs=2, depth=1, batch_size=8)
    >>> sweep = jx.Sweep(base, {"learning_rate": [0.1, 0.01], "fold": range(3)})
    >>> results = jx.run(sweep, data=folded, progress=False)
    >>> results["accuracy"].mean("fold").dims
    ('learning_rate', 'epoch', 'split')
    """
    if not isinstance(data, Data):
        raise UserError(f"data is {type_of(data)}, expected jaxexp.Data")
    if data.folds is not None or data.validation is not None:
        has = "folds" if data.folds is not None else "a validation split"
        raise UserError(f"data has {has} already, expected none: jaxexp.arrays(…, validation=None)")
    n = row_count(data.train)
    if not is_int(folds):
        if isinstance(folds, str) or not isinstance(folds, Iterable):
            raise UserError(f"folds={folds!r}: expected how many, or pairs of rows")
        given = [_pair(i, own) for i, own in enumerate(folds)]
        if not given:
            raise UserError("folds: expected at least one pair of rows")
    else:
        of_N = _drawn(data, n, int(folds), seed)
        given = [(np.flatnonzero(of_N != i), np.flatnonzero(of_N == i)) for i in range(int(folds))]
    train, validation = (table([own[part] for own in given]) for part in (0, 1))
    folded = data.folded({"train": train, "validation": validation})
    _check_classes(data, [own for own, _ in given])
    return folded


def _pair(place: int, own: object) -> tuple[np.ndarray, np.ndarray]:
    if not isinstance(own, tuple | list) or len(own) != 2:
        raise UserError(f"folds[{place}]: expected a pair of rows to train on and to validate on")
    train, validation = (np.asarray(rows) for rows in own)
    for rows in (train, validation):
        if rows.ndim != 1 or rows.dtype.kind not in "iu" or len(rows) == 0 or rows.min() < 0:
            raise UserError(f"folds[{place}]: expected numbers of rows, at least one in each part")
    return train, validation


def _check_classes(data: Data, train: Sequence[np.ndarray]) -> None:
    """Refuse a fold that trains without a class: no model would learn it."""
    y = data.train.y if isinstance(data.train, Examples) else None
    if data.classes is None or not isinstance(y, np.ndarray) or y.dtype.kind not in "iu":
        return
    exist_C = np.bincount(y.ravel(), minlength=len(data.classes)) > 0
    for fold, rows in enumerate(train):
        lacks_C = exist_C & (np.bincount(y[rows].ravel(), minlength=len(exist_C)) == 0)
        if lacks_C.any():
            raise UserError(
                f"folds, fold {fold}: class {data.classes[lacks_C.argmax()]!r} has none of the "
                f"{len(rows)} examples to train on, expected every class there: draw the folds "
                "(folds=5), or stratify them"
            )


def _drawn(data: Data, n: int, folds: int, seed: int) -> np.ndarray:
    """The fold of each example, (N,)."""
    if folds < 2:
        raise UserError(f"folds={folds}: expected at least 2")
    seed = checked_int("seed", seed, least=0)
    y = data.train.y if isinstance(data.train, Examples) else None
    label_N = np.zeros(n, int)
    if isinstance(y, np.ndarray) and y.ndim == 1 and y.dtype.kind in "iu":
        label_N = y
    labels, counts = np.unique(label_N, return_counts=True)
    if (few := np.flatnonzero(counts < folds)).size:
        of, hint = "to train on", ""
        if len(labels) > 1:
            of = f"of label {labels[few[0]]}"
            hint = "" if data.classes else "; counts are given as floats: y.astype('float32')"
        raise UserError(
            f"folds={folds}: there are {count(int(counts[few[0]]), 'example')} {of}, expected at "
            f"most as many folds{hint}"
        )
    order_N = np.random.default_rng(seed).permutation(n)
    order_N = order_N[np.argsort(label_N[order_N], kind="stable")]
    fold_N = np.empty(n, int)
    fold_N[order_N] = np.arange(n) % folds  # round after round, continued from class to class
    return fold_N


def table(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of each fold as (F, M), -1 at the end of shorter ones."""
    made = np.full((len(rows), max(map(len, rows))), -1, np.int64)
    for own, row in zip(made, rows, strict=True):
        own[: len(row)] = row
    return made
