"""When scikit-learn's networks stop: the same counting as in its `MLPClassifier`."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxexp.execution.rules import Curves
from jaxexp.spec.trial import Trial


@dataclass(frozen=True)
class NoImprovement:
    """A trial ends once a metric has not improved by `tol` for more than so many epochs in a row.

    An epoch counts if it is not better than the best before it by `tol`, and the best moves with
    every improvement, however small: `BaseMultilayerPerceptron._update_no_improvement_count` of
    scikit-learn. With `restore_best`, a trial has the parameters of its best epoch in the end.
    """

    metric: str
    tol: float
    n_iter_no_change: float
    restore_best: bool = False

    def check(self, trials: Sequence[Trial], curves: Curves, steps: np.ndarray) -> None:
        """Raise UserError for a metric that there is not."""
        curves.check(self.metric, None)

    def stop(self, epoch: int, trials: Sequence[Trial], curves: Curves) -> np.ndarray:
        """Those that have waited for too long."""
        waited, _ = self._waited(curves)
        stopped: np.ndarray = waited > self.n_iter_no_change
        return stopped

    def improved(self, epoch: int, trials: Sequence[Trial], curves: Curves) -> np.ndarray | None:
        """Those whose best epoch this one is."""
        if not self.restore_best:
            return None
        _, best_epoch = self._waited(curves)
        better: np.ndarray = best_epoch == epoch
        return better

    def converged(self, cost_E: np.ndarray) -> bool:
        """Whether this is why a trial ended; costs of its epochs."""
        cost_E = np.where(np.isfinite(cost_E), cost_E, np.inf)
        return bool(self._count(cost_E[None])[0][0] > self.n_iter_no_change)

    def _waited(self, curves: Curves) -> tuple[np.ndarray, np.ndarray]:
        return self._count(curves.costs(self.metric))

    def _count(self, cost_TxE: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Epochs without an improvement, and the epoch of the best, (T,) each."""
        epoch_E = np.arange(1, cost_TxE.shape[1] + 1)
        best_TxE = np.minimum.accumulate(cost_TxE, axis=1)
        before_TxE = np.pad(best_TxE[:, :-1], ((0, 0), (1, 0)), constant_values=np.inf)
        better_TxE = (cost_TxE <= before_TxE - self.tol) & ~np.isinf(cost_TxE)
        improved_T = np.where(better_TxE, epoch_E, 0).max(1, initial=0)
        epoch_T = np.where(cost_TxE < before_TxE, epoch_E, 0).max(1, initial=0)
        return len(epoch_E) - improved_T, epoch_T
