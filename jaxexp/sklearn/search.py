"""Cross-validated search: folds × candidates × seeds as one plan, the data placed once."""

import copy
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from sklearn.base import clone, is_classifier
from sklearn.exceptions import FitFailedWarning
from sklearn.model_selection import ParameterGrid, ParameterSampler, check_cv
from sklearn.model_selection._search import BaseSearchCV  # what third parties derive from, too
from sklearn.model_selection._validation import _score
from sklearn.utils import indexable
from sklearn.utils._indexing import _safe_indexing
from sklearn.utils.validation import _check_method_params, _num_samples

from jaxexp.api import run
from jaxexp.base.errors import UserError
from jaxexp.base.numbers import is_int, is_number
from jaxexp.results.results import Predict
from jaxexp.sklearn.base import NOT_FINITE, Fitted, Held, Network, Prepared, curve_of, is_any_of
from jaxexp.sklearn.sharing import alike, in_plans, of_one_shape, of_one_size, without_repeats
from jaxexp.spec.sweep import Sweep
from jaxexp.spec.trial import Trial
from jaxexp.training.checks import plain_value

# Methods that are not called fold by fold: trials are trained together, on data checked once.
TOGETHER = ("fit", "_train", "_data", "_prepare")
Split = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Fit:
    """Of a candidate on a fold with a seed."""

    seconds: float
    fitted: Fitted | None
    error: str = NOT_FINITE  # if there is nothing to score, why


class VectorizedSearchCV(BaseSearchCV):  # type: ignore[misc]
    """Grid or random search with cross-validation, all candidates, folds and seeds at once.

    What `GridSearchCV` and `RandomizedSearchCV` are for other estimators: `cv_results_`,
    `best_estimator_`, `best_params_`, scorers, `refit`, and everything that the best estimator
    does. All fits are trials of one plan, so a few compiled programs train them side by side, with
    one copy of the data per device; candidates are then scored with scikit-learn's own scorers.

    Folds whose sizes differ by less than 1 % are filled up to the longest, with rows of weight 0;
    rows may repeat, as in a bootstrap. On a fold without training examples of some class, where
    networks have fewer outputs, each candidate is fitted on its own, as in `GridSearchCV`.
    Candidates that differ in something that is not a hyperparameter of a trial (`tol`,
    `early_stopping`, `random_state`, a module or its loss …) train in separate plans.

    Args:
        estimator: one of `jaxexp.sklearn`, or of a subclass that trains as they do: one with a
            `fit` of its own is refused, since no fold would be trained by it. (A pipeline goes
            around the search, or its transformer before it:
            `make_pipeline(StandardScaler(), VectorizedSearchCV(…))`.)
        params: lists of values by name, or several such dicts; with `n_iter` also distributions of
            scipy.
        n_iter: the number of random candidates, or None for every combination.
        n_seeds: the number of seeds with which each candidate is trained on every fold; its score
            on a fold is the mean over them.
        scoring: as for `GridSearchCV`, and so are `refit`, `cv`, `verbose`, `error_score` and
            `return_train_score`.
        refit: see there.
        cv: see there.
        random_state: decides the random candidates. Seeds of trials come from the estimators' own
            `random_state`.
        verbose: progress is shown if this is above 0.
        error_score: the score of a candidate whose loss, weights or predictions are not finite, or
            that cannot be fitted on its own on a fold; or "raise".
        return_train_score: see there.

    `mean_fit_time` is an estimate: each fit's share of the total time; `refit_time_`, `n_splits_`
    and `scorer_` are as for `GridSearchCV`.

    Raises, before training starts, ValueError or TypeError for invalid parameters.

    >>> from sklearn.datasets import load_iris
    >>> from jaxexp.sklearn import MLPClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> model = MLPClassifier((8,), max_iter=30, batch_size=32, random_state=0, tol=None)
    >>> search = VectorizedSearchCV(model, {"learning_rate_init": [1e-5, 0.03]}, cv=3, n_seeds=2)
    >>> search.fit(X, y).best_params_
    {'learning_rate_init': 0.03}
    """

    def __init__(
        self, estimator: Any, params: Any, *, n_iter: int | None = None, n_seeds: int = 1,
        scoring: Any = None, refit: Any = True, cv: Any = None, random_state: Any = None,
        verbose: int = 0, error_score: Any = np.nan, return_train_score: bool = False,
    ) -> None:  # fmt: skip
        """See the class."""
        super().__init__(
            estimator, scoring=scoring, refit=refit, cv=cv, verbose=verbose,
            error_score=error_score, return_train_score=return_train_score,
        )  # fmt: skip
        self.params, self.n_iter, self.n_seeds = params, n_iter, n_seeds
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, **params: Any) -> Self:
        """Train every candidate on every fold, and the best on all of X, (N, F), and y, (N,).

        `params` go to `fit` of the estimator (`sample_weight`), to the splitter (`groups`) and to
        the scorers, by scikit-learn's rules.
        """
        if not isinstance(self.estimator, Network):
            raise TypeError(
                f"estimator={self.estimator!r}: expected one of jaxexp.sklearn; for others there "
                "is GridSearchCV, and a pipeline may hold this search as its last step"
            )
        if own := _own_training(type(self.estimator)):
            raise TypeError(
                f"estimator={self.estimator!r}: {own} is not called on the folds, which train "
                "together; expected an estimator that trains as those of jaxexp.sklearn do, or "
                "GridSearchCV around this one"
            )
        counts = {"n_seeds": self.n_seeds, "n_iter": 1 if self.n_iter is None else self.n_iter}
        for name, n in counts.items():
            if not is_int(n) or n < 1:
                raise ValueError(f"{name}={plain_value(n)!r}: expected a whole number above 0")
        if not is_number(self.error_score) and not is_any_of(self.error_score, "raise"):
            score = plain_value(self.error_score)
            raise ValueError(f"error_score={score!r}: expected 'raise' or a number")
        scorers, refit_metric = self._get_scorers()
        X, y = indexable(X, y)
        routed = self._get_routed_params_for_fit(_check_method_params(X, params=params))
        fit_params, score_params = routed.estimator.fit, routed.scorer.score
        if unknown := set(fit_params) - {"sample_weight"}:
            raise TypeError(f"fit: unknown {', '.join(sorted(unknown))}, expected sample_weight")
        splitter = check_cv(self.cv, y, classifier=is_classifier(self.estimator))
        each = splitter.split(X, y, **routed.splitter.split)
        splits = [_rows(i, split, _num_samples(X)) for i, split in enumerate(each)]
        if not splits:
            used = isinstance(self.cv, Iterator)
            hint = ": give a list of them, since a generator is used up by the first fit"
            raise ValueError(
                f"cv={self.cv!r}: no splits, expected one at least{hint if used else ''}"
            )
        self.n_splits_ = len(splits)
        candidates = self._candidates()
        rows = self._fit_and_score(
            X, y, splits, candidates, fit_params.get("sample_weight"), scorers, score_params
        )
        self.multimetric_ = isinstance(rows[0]["test_scores"], dict)
        if callable(self.scoring) and self.multimetric_:
            self._check_refit_for_multimetric(rows[0]["test_scores"])
            refit_metric = self.refit
        results = self._format_results(candidates, self.n_splits_, rows)
        if self.refit or not self.multimetric_:
            self.best_index_ = self._select_best_index(self.refit, refit_metric, results)
            if not callable(self.refit):
                self.best_score_ = results[f"mean_test_{refit_metric}"][self.best_index_]
            self.best_params_ = results["params"][self.best_index_]
        if self.refit:
            self.best_estimator_ = self._candidate(self.best_params_)
            started = time.perf_counter()
            self.best_estimator_.fit(X, y, **fit_params)
            self.refit_time_ = time.perf_counter() - started
            if hasattr(self.best_estimator_, "feature_names_in_"):
                self.feature_names_in_ = self.best_estimator_.feature_names_in_
        self.scorer_ = getattr(scorers, "_scorers", scorers)
        self.cv_results_ = results
        return self

    def _candidates(self) -> list[dict[str, Any]]:
        if self.n_iter is None:
            made = [*ParameterGrid(self.params)]
        else:
            made = [*ParameterSampler(self.params, self.n_iter, random_state=self.random_state)]
        if not made:
            raise ValueError(f"params={self.params!r}: no candidates, expected one at least")
        return made

    def _candidate(self, params: Mapping[str, Any]) -> Network:
        """An estimator of its own: what it does with a parameter's value, no other notices."""
        made: Network = clone(self.estimator).set_params(**clone(dict(params), safe=False))
        return made

    def _fit_and_score(
        self, X: Any, y: Any, splits: Sequence[Split], candidates: Sequence[Mapping[str, Any]],
        sample_weight: Any, scorers: Any, score_params: Mapping[str, Any],
    ) -> list[dict[str, Any]]:  # fmt: skip
        """Of every candidate and fold, as scikit-learn's own loop has them."""
        estimators = [self._candidate(own) for own in candidates]
        for estimator in estimators:
            estimator._check()
        prepared = estimators[0]._prepare(X, y, sample_weight)
        groups = [
            group
            for places in alike(self.estimator, candidates, estimators)
            for group in of_one_shape(prepared, estimators, places)
        ]
        found: dict[tuple[int, int, int], Fit] = {}  # by candidate, fold and seed
        for places, ready in groups:
            found |= self._train(X, y, sample_weight, ready, splits, estimators, places)
        parts = [
            [
                (
                    _safe_indexing(X, rows),
                    _safe_indexing(y, rows),
                    _check_method_params(X, params=dict(score_params), indices=rows),
                )
                for rows in (split[::-1] if self.return_train_score else split[1:])
            ]
            for split in splits
        ]
        made, lost = [], list[str]()
        for place, estimator in enumerate(estimators):
            for fold, split in enumerate(parts):
                several = [found[place, fold, seed] for seed in range(self.n_seeds)]
                started = time.perf_counter()
                scores = []
                for own in several:
                    scored = self._score(estimator, own, split, scorers)
                    lost += [own.error] if scored is None else []
                    scores.append(scored)
                means = [_mean_scores(scores, i, self.error_score) for i in range(len(split))]
                made.append({
                    "test_scores": means[0],
                    "n_test_samples": len(splits[fold][1]),
                    "fit_time": sum(own.seconds for own in several),
                    "score_time": time.perf_counter() - started,
                    **({"train_scores": means[1]} if self.return_train_score else {}),
                })  # fmt: skip
        if lost:
            message = f"{len(lost)} of {len(found)} fits failed: {'; '.join(dict.fromkeys(lost))}"
            if len(lost) == len(found):
                raise ValueError(message)
            warnings.warn(message, FitFailedWarning, stacklevel=3)
        # A dict of scores stands where there are several, also where a fit or a scorer has failed.
        like = next((s for own in made if isinstance(s := own["test_scores"], dict)), None)
        error = self.error_score if like is None else dict.fromkeys(like, self.error_score)
        for row in made:
            for name in {"test_scores", "train_scores"} & {*row}:
                if row[name] is None or (like is not None and not isinstance(row[name], dict)):
                    row[name] = error
        return made

    def _score(
        self, estimator: Network, own: Fit, split: Sequence[Any], scorers: Any
    ) -> list[Any] | None:
        """Of each part of a split; None where the fit has failed, or the loss is not finite."""
        if own.fitted is None:
            return None
        if not own.fitted.finite:
            if self.error_score == "raise":
                raise ValueError(f"{own.fitted.trial}: {NOT_FINITE}")
            return None
        estimator = copy.copy(estimator)  # which a scorer may keep
        estimator._adopt(own.fitted)
        return [
            _score(estimator, X, y, scorers, params, self.error_score) for X, y, params in split
        ]

    def _train(
        self, X: Any, y: Any, sample_weight: Any, prepared: Prepared, splits: Sequence[Split],
        estimators: Sequence[Network], places: Sequence[int],
    ) -> dict[tuple[int, int, int], Fit]:  # fmt: skip
        """Candidates that may share a plan: by candidate, fold and seed."""
        found: dict[tuple[int, int, int], Fit] = {}
        first = estimators[places[0]]
        seeds = first._seeds(self.n_seeds)
        held = in_plans(first, prepared, [train for train, _ in splits], seeds[0])
        for own in of_one_size({fold: len(train) for fold, (train, _) in held.items()}):
            asked = [(place, fold, seed) for place in places for fold in own
                     for seed in range(self.n_seeds)]  # fmt: skip
            made_of = [
                estimators[place]._make_trial(len(held[fold][0]), seeds[seed])
                for place, fold, seed in asked
            ]
            trials = [
                trial.replace(fold=own.index(fold))
                for trial, (_, fold, _) in zip(made_of, asked, strict=True)
            ]
            made = self._run(first, prepared, [held[fold] for fold in own], trials)
            found |= {key: made[trial] for key, trial in zip(asked, trials, strict=True)}
        for fold, (train, _) in enumerate(splits):
            if fold in held:
                continue
            weight = _check_method_params(X, params={"weight": sample_weight}, indices=train)
            part = _safe_indexing(X, train), _safe_indexing(y, train), weight["weight"]
            found |= {
                (place, fold, i): self._fit_alone(estimators[place], fold, part, seed, seeds[0])
                for place in places
                for i, seed in enumerate(seeds)
            }
        return found

    def _fit_alone(
        self, estimator: Network, fold: int, part: Sequence[Any], seed: int, split_seed: int
    ) -> Fit:
        """What the estimator's own `fit` would train on X, y and weights of a fold."""
        started = time.perf_counter()
        try:
            fitted = estimator._train(estimator._prepare(*part), seed, split_seed)
        except Exception as error:  # whatever it is, as in scikit-learn's loop
            if self.error_score == "raise":
                raise
            return Fit(time.perf_counter() - started, None, f"fold {fold}: {error}")
        return Fit(time.perf_counter() - started, fitted)

    def _run(
        self, first: Network, prepared: Prepared,
        held: Sequence[Held], trials: Sequence[Trial],
    ) -> dict[Trial, Fit]:  # fmt: skip
        """One plan: these trials on these folds."""
        started = time.perf_counter()
        prepared, held = without_repeats(prepared, held)
        distinct = list(dict.fromkeys(trials))
        try:
            data = first._data(prepared, held)
            task = first._make_task(prepared)
            results = run(
                _sweep(distinct), task, data, stopping=first._rule(),
                progress=bool(self.verbose),
            )  # fmt: skip
        except UserError as error:
            raise ValueError(first._reason(error, prepared, distinct)) from error
        seconds = (time.perf_counter() - started) / len(trials)
        metric, made = first.score_metric, {}
        # In the order of the trials: the sweep has one axis.
        flat = results.dataset
        running = flat["running_loss"].transpose("candidate", "epoch").values
        scores = flat[metric].isel(split=-1).transpose("candidate", "epoch").values
        epochs, diverged = flat["epochs_trained"].values, flat["diverged_epoch"].values > 0
        kept, compiled = results.kept(), dict[Trial, Predict]()
        for i, trial in enumerate(results.sweep.trials()):
            score_E = scores[i] if first.early_stopping else None
            curve = curve_of(running[i], score_E, int(epochs[i]), bool(diverged[i]))
            made[trial] = Fit(seconds, Fitted(
                prepared.attributes, results.task, trial, kept.get(trial.id), curve, compiled
            ))  # fmt: skip
        return made


def _own_training(cls: type[Network]) -> str:
    """The method by which a subclass of the user's trains otherwise; "" if there is none."""
    for name in TOGETHER:
        owner = next(each for each in cls.__mro__ if name in vars(each))
        if not owner.__module__.startswith("jaxexp."):
            return f"{owner.__name__}.{name}"
    return ""


def _sweep(trials: Sequence[Trial]) -> Sweep:
    """These trials, along one dimension."""
    fields = trials[0].fields()
    differs = (n for n in fields if len({getattr(trial, n) for trial in trials}) > 1)
    names = tuple(differs) or ("fold",)
    points = [tuple(getattr(trial, name) for name in names) for trial in trials]
    return Sweep(trials[0], {names: points}, name="search", dim_names={names: "candidate"})


def _rows(place: int, split: Split, n: int) -> Split:
    """A split as numbers of rows, from 0: masks, and places from the end, are understood too."""
    try:
        train, test = (np.arange(n)[np.asarray(rows)] for rows in split)
    except (IndexError, ValueError, TypeError) as error:
        raise ValueError(
            f"cv, split {place}: expected rows to train on and to test on, of {n} ({error})"
        ) from error
    return train, test


def _mean_scores(scores: Sequence[Sequence[Any] | None], part: int, error_score: Any) -> Any:
    """The mean over seeds of one part's scores; None where none was scored."""
    if all(score is None for score in scores):
        return None
    own = [error_score if score is None else score[part] for score in scores]
    like = next((each for each in own if isinstance(each, dict)), None)
    if like is None:
        return float(np.mean(own))
    return {
        name: float(
            np.mean([each[name] if isinstance(each, dict) else error_score for each in own])
        )
        for name in like
    }
