"""Which fits of a search share a plan: by candidates, by folds, and the rows of these."""

import dataclasses
from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Any

import numpy as np

from jaxexp.sklearn.base import Held, Network, Prepared

ALIKE = 0.01  # folds whose sizes differ by less share a plan; others would wait for the longest
PLAIN = (bool, int, float, str, NoneType, np.generic)  # of which `==` says everything


def alike(
    given: Network, candidates: Sequence[Mapping[str, Any]], estimators: Sequence[Network]
) -> list[list[int]]:
    """The places of candidates that may share a plan.

    What is no plain value is compared as an object, since neither its text nor its `==` need tell
    all of it; and as the user gave it, since each estimator has a copy of its own.
    """
    groups: dict[tuple[object, ...], list[int]] = {}
    for place, (candidate, estimator) in enumerate(zip(candidates, estimators, strict=True)):
        own = given.get_params(deep=False) | candidate
        # What a subclass does not take as a parameter, it sets itself.
        values = [own[name] if name in own else getattr(estimator, name) for name in given.apart]
        identities = ((type(v), v if isinstance(v, PLAIN) else id(v)) for v in values)
        key = *identities, type(estimator.get_params(deep=False).get("trial"))
        groups.setdefault(key, []).append(place)
    return [*groups.values()]


def of_one_shape(
    prepared: Prepared, estimators: Sequence[Network], places: Sequence[int]
) -> list[tuple[list[int], Prepared]]:
    """Candidates whose targets have equally many axes, and the data with these."""
    shaped: dict[object, Prepared] = {}  # by what decides: to trace a module takes a while
    groups: dict[int, tuple[list[int], Prepared]] = {}
    for place in places:
        kind = estimators[place]._kind
        if kind not in shaped:
            shaped[kind] = estimators[place]._shaped(prepared)
        groups.setdefault(shaped[kind].y.ndim, ([], shaped[kind]))[0].append(place)
    return [*groups.values()]


def in_plans(
    first: Network, prepared: Prepared, folds: Sequence[np.ndarray], seed: int
) -> dict[int, Held]:
    """The rows to train on, and those held out, of folds that may share a plan."""
    made: dict[int, Held] = {}
    for fold, rows in enumerate(folds):
        try:
            held = first._held_out(prepared, np.asarray(rows), seed)
        except ValueError:  # too few examples of a class, or no weights: the fit alone says so
            continue
        if first._fits_plan(prepared, np.asarray(rows)):
            made[fold] = held
    return made


def without_repeats(prepared: Prepared, held: Sequence[Held]) -> tuple[Prepared, Sequence[Held]]:
    """The same folds, of data with copies of the rows that a fold has several times."""
    n = len(prepared.y)
    places = []  # of the k-th copy of row i: k · n + i
    for train, validation in held:
        row_M = np.concatenate([train, [] if validation is None else validation]).astype(int)
        order_M = np.argsort(row_M, kind="stable")
        sorted_M = row_M[order_M]
        copy_M = np.empty_like(row_M)
        copy_M[order_M] = np.arange(len(row_M)) - np.searchsorted(sorted_M, sorted_M)
        places.append(copy_M * n + row_M)
    kept = np.union1d(np.arange(n), np.concatenate(places))
    if len(kept) == n:
        return prepared, held
    X_NxF, y = prepared.X_NxF[kept % n], prepared.y[kept % n]
    weight_N = None if prepared.weight_N is None else prepared.weight_N[kept % n]
    folds = []
    for (train, validation), place_M in zip(held, places, strict=True):
        own, other = np.split(np.searchsorted(kept, place_M), [len(train)])
        folds.append((own, None if validation is None else other))
    return dataclasses.replace(prepared, X_NxF=X_NxF, y=y, weight_N=weight_N), folds


def of_one_size(sizes: Mapping[int, int]) -> list[list[int]]:
    """Folds by their size, those together that differ by little."""
    made: list[list[int]] = []
    for fold in sorted(sizes, key=lambda fold: -sizes[fold]):
        if made and sizes[made[-1][0]] - sizes[fold] <= max(1, ALIKE * sizes[fold]):
            made[-1].append(fold)
        else:
            made.append([fold])
    return [sorted(own) for own in made]
