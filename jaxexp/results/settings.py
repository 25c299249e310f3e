"""Which trials of a sweep differ only in their replicate: their seed and fold.

Replicates lie along one dimension: their own, or one that they share with other hyperparameters,
whose values then group its points. Seeds and folds along two dimensions are first stacked into one
(`flat`).
"""

import json
from dataclasses import dataclass
from typing import Self, TypeVar

import numpy as np
import pandas as pd
import xarray as xr

from jaxexp.results import select

ResultT = TypeVar("ResultT", xr.Dataset, xr.DataArray)


@dataclass(frozen=True)
class Settings:
    """The points along the dimension of the replicates, grouped.

    Attributes:
        dim: the name of that dimension, of P points.
        name: the dimension of settings that replaces it; None if only replicates vary along it.
        group_P: the setting of each point, numbered in order of appearance.
        replicates: "seed", "fold" or both.
    """

    dim: str
    name: str | None
    group_P: np.ndarray
    replicates: tuple[str, ...]

    @classmethod
    def of(cls, ds: xr.Dataset) -> Self | None:
        """The settings of `flat` results; None without replicates, or if no setting repeats."""
        axes, repeated = select.axes(ds), tuple(select.replicates(ds))
        if not repeated:
            return None
        dim = str(ds[repeated[0]].dims[0])
        names = [name for name in select.hyperparameters(ds) if ds[name].dims == (dim,)]
        others = [name for name in names if name not in repeated]
        if not others:
            return cls(dim, None, np.zeros(ds.sizes[dim], int), repeated)
        values = pd.DataFrame({name: ds[name].values for name in others})
        group_P = values.groupby(others, sort=False, dropna=False).ngroup().to_numpy()
        if len(np.unique(group_P)) == len(group_P):
            return None
        name = "_".join(others)
        own = dim != "_".join(names) or name in axes  # a name that the user chose stays
        return cls(dim, dim if own else name, group_P, repeated)

    @property
    def counts(self) -> np.ndarray:
        """How many replicates each setting has, (G,)."""
        return np.bincount(self.group_P)

    def axes(self, ds: xr.Dataset) -> list[str]:
        """The axes of results with one point for each setting."""
        named = [self.name if axis == self.dim else axis for axis in select.axes(ds)]
        return [axis for axis in named if axis is not None]

    def by_trial(self, ds: xr.Dataset) -> np.ndarray:
        """The index of each trial's setting, with trials in the order of `select.points`."""
        order = select.axes(ds)
        axis = order.index(self.dim)
        shape = [ds.sizes[own] if own != self.dim else len(self.counts) for own in order]
        places = np.arange(np.prod(shape, dtype=int)).reshape(shape)
        return places.take(self.group_P, axis).reshape(-1)

    def first(self, values: ResultT) -> ResultT:
        """The first point of each setting."""
        return self._at(values, np.unique(self.group_P, return_index=True)[1])

    def _at(self, values: ResultT, points_G: np.ndarray) -> ResultT:
        if self.name is None:
            return values.isel({self.dim: int(points_G[0])}, drop=True)
        own = values.isel({self.dim: points_G}).drop_vars(self.replicates)
        return own if self.name == self.dim else own.swap_dims({self.dim: self.name})

    def sum(self, values: xr.DataArray) -> xr.DataArray:
        """The sum over the replicates of each setting."""
        return self._reduced(values, np.add)

    def max(self, values: xr.DataArray) -> xr.DataArray:
        """The largest over the replicates of each setting."""
        return self._reduced(values, np.maximum)

    def _reduced(self, values: xr.DataArray, function: np.ufunc) -> xr.DataArray:
        axis = values.get_axis_num(self.dim)
        ordered = np.take(values.values, np.argsort(self.group_P, kind="stable"), axis)
        ordered = ordered.astype(int) if ordered.dtype.kind == "b" else ordered
        made = function.reduceat(ordered, self._starts, axis)
        if self.name is None:
            made = made.squeeze(axis)
        return self.first(values).astype(made.dtype).copy(data=made)

    def of_each(self, values: xr.DataArray) -> xr.DataArray:
        """The value of each setting, repeated for each of its points: the reverse of `sum`."""
        names = [str(name) for name in values.coords if self.name in values[name].dims]
        bare = values.drop_vars(names)
        if self.name is None:
            bare = bare.expand_dims(self.dim)
        elif self.name != self.dim:
            bare = bare.rename({self.name: self.dim})
        return bare.isel({self.dim: self.group_P})

    @property
    def _starts(self) -> np.ndarray:
        """Where each setting starts when points are sorted by setting, (G,)."""
        start_G: np.ndarray = np.cumsum(self.counts) - self.counts
        return start_G

    def places(self, values: xr.DataArray, share: float) -> xr.DataArray:
        """For each setting, the point at a `share` of its replicates, ordered by `values` (axes).

        0.5 is the median (of an even number, the lower of the middle two); 1 is the highest. NaN is
        left out, unless a setting has nothing else.
        """
        last = values.transpose(..., self.dim)
        rows_RxP = last.values.reshape(-1, len(self.group_P)).astype(float)
        keys_RxP = np.where(np.isnan(rows_RxP), np.inf, rows_RxP)
        order_RxP = np.stack([np.lexsort((keys_P, self.group_P)) for keys_P in keys_RxP])
        known_RxP = np.take_along_axis(np.isfinite(rows_RxP).astype(int), order_RxP, axis=1)
        known_RxG = np.add.reduceat(known_RxP, self._starts, axis=1)
        n_RxG = np.where(known_RxG > 0, known_RxG, self.counts)
        place_RxG = self._starts + ((n_RxG - 1) * share).astype(int)
        chosen = np.take_along_axis(order_RxP, place_RxG, axis=1)
        inner = () if self.name is None else (self.name,)
        shape = last.shape[:-1] + (() if self.name is None else (len(self.counts),))
        return xr.DataArray(chosen.reshape(shape), dims=(*last.dims[:-1], *inner))

    def take(self, values: ResultT, places: xr.DataArray) -> ResultT:
        """For each setting, the point at its place in `places`, with that point's seed and fold."""
        own = self.replicates
        moved = [n for n in values.coords if n not in own and self.dim in values[n].dims]
        made = values.drop_vars(moved).isel({self.dim: places})
        outer = self.first(values)
        return made.assign_coords({n: outer[n] for n in moved if n in outer.coords})


def flat(ds: xr.Dataset) -> xr.Dataset:
    """Results with seeds and folds stacked along one dimension if they have two."""
    axes = select.axes(ds)
    dims = sorted({str(ds[name].dims[0]) for name in select.replicates(ds)}, key=axes.index)
    if len(dims) < 2:
        return ds
    moved = [name for name in select.hyperparameters(ds) if ds[name].dims[0] in dims]
    chosen = [dim for dim in dims if dim not in moved and dim != "_".join(
        name for name in moved if ds[name].dims == (dim,))]  # fmt: skip
    stacked = ds.stack(_flat=dims, create_index=False)
    name = chosen[0] if chosen else "_".join(moved)
    order = [name if axis == dims[0] else axis for axis in axes if axis not in dims[1:]]
    made = stacked.rename_dims(_flat=name).transpose(*order, ...)
    return made.assign_attrs(axes=json.dumps(order))
