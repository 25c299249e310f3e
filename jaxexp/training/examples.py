"""What a task computes for each example of a batch, as programs for batches of any size."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend import core as jax_core

from jaxexp.base.errors import UserError, in_one_line
from jaxexp.base.words import count
from jaxexp.spec.trial import Trial, with_values
from jaxexp.training import batching, keys, lookups, tracing
from jaxexp.training.data import Data
from jaxexp.training.task import Batch, Outputs, Task, Variables, update
from jaxexp.training.trees import PyTree

ANY = 32  # examples of a batch whose size does not matter
Leaves: TypeAlias = Mapping[str, Any]  # the hyperparameters that are traced, by name


class Given(NamedTuple):
    """What a task's functions are given, as shapes or as arrays."""

    leaves: Leaves
    variables: Variables
    batch: Batch
    mask: Any
    rng: Any


class Programs:
    """Programs of a task for trials whose static values agree, traced once for each batch size."""

    def __init__(self, task: Task, data: Data, of: Trial) -> None:
        """`of` is one of the trials."""
        self.task, self.of, self.arrays = task, of, data.arrays()
        leaves, key = tracing.traced_shapes(of), keys.like()
        variables = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype),
            jax.eval_shape(self.init, leaves, key, self.arrays),
        )
        self.shapes = self.sized(Given(leaves, variables, None, None, key), ANY)
        self._examples: dict[tuple[int, bool], tuple[jax_core.ClosedJaxpr, list[str]]] = {}
        self._tangents: dict[int, jax_core.ClosedJaxpr | None] = {}

    def sized(self, given: Given, n: int) -> Given:
        """The same, but with the shapes of a batch of n."""
        batch, mask = tracing.batch_of(self.arrays, n)
        return given._replace(batch=batch, mask=mask)

    def trial(self, leaves: Leaves) -> Trial:
        """The trial that has these traced values."""
        return with_values(self.of, **leaves)

    def init(self, leaves: Leaves, rng: Array, data: PyTree) -> Variables:
        """The variables that the task begins with."""
        return self.task.init(self.trial(leaves), rng, data)

    def examples(self, given: Given, *, train: bool) -> tuple[dict[str, PyTree], PyTree]:
        """What is computed for each example, (B, ...), loss first; in training, the new state."""
        leaves, variables, batch, mask, rng = given
        made: Outputs = self.task.apply(
            self.trial(leaves), variables, batch, rng=rng, mask=mask, train=train
        )
        each: dict[str, PyTree] = {"": made.loss, **made.metrics}
        for name, metric in self.task.metrics.items():
            if metric.example is not None:
                each[name] = metric.example(made.prediction, made.target)
            elif metric.sums is not None:
                each[name] = jax.tree.leaves((made.prediction, made.target))
        return each | {" weights": self.task.weights(batch)}, made.state if train else ()

    def gradients(self, given: Given) -> tuple[dict[str, PyTree], PyTree, PyTree]:
        """The same in training, and the gradients of the loss that is minimised."""

        def loss(params: PyTree) -> tuple[Array, tuple[dict[str, PyTree], PyTree]]:
            own = given._replace(variables=given.variables._replace(params=params))
            each, state = self.examples(own, train=True)
            weight_B = batching.weights_of(self.task, given.batch, given.mask)
            return batching.weighted_mean(each[""], weight_B), (each, state)

        grads, (each, state) = jax.grad(loss, has_aux=True)(given.variables.params)
        return each, state, grads

    def tangents(self, given: Given, towards: PyTree) -> Array:
        """The tangent of the loss of each example, (B,), as parameters move `towards` others."""

        def loss(params: PyTree) -> Array:
            own = given._replace(variables=given.variables._replace(params=params))
            each: Array = self.examples(own, train=True)[0][""]
            return each

        _, tangent_B = jax.jvp(loss, (given.variables.params,), (towards,))
        made: Array = tangent_B
        return made

    def asks_for_losses(self, steps: int) -> bool:
        """Whether the optimizer computes the loss at other parameters, as a line search does."""
        asked = False

        def value_fn(params: PyTree) -> Array:
            nonlocal asked
            asked = True
            return jnp.zeros(())

        def one(leaves: Leaves, params: PyTree) -> PyTree:
            optimizer = self.task.optimizer(self.trial(leaves), steps)
            return update(optimizer, params, optimizer.init(params), params, 0.0, value_fn)

        jax.eval_shape(one, self.shapes.leaves, self.shapes.variables.params)
        return asked

    def traced_examples(self, n: int, *, train: bool) -> tuple[jax_core.ClosedJaxpr, list[str]]:
        """`examples` for n, traced once, and each first result's metric, "" for the others.

        Raises UserError if the task's functions do not accept n examples.
        """
        if (n, train) not in self._examples:
            function = functools.partial(self.examples, train=train)
            shapes = self.sized(self.shapes, n)
            try:
                program, (each, _) = jax.make_jaxpr(function, return_shape=True)(shapes)
            except Exception as error:
                raise UserError(
                    f"{type(self.task).__name__} fails for a batch of {count(n, 'example')}, "
                    f"expected to take any number: {in_one_line(error)}"
                ) from error
            names = [
                name if name in self.task.metrics else ""
                for name, own in each.items()
                for _ in jax.tree.leaves(own)
            ]
            self._examples[n, train] = lookups.in_own_rows(program), names
        return self._examples[n, train]

    def traced_tangents(self, n: int) -> jax_core.ClosedJaxpr | None:
        """`tangents` for n examples, traced once; None if a custom backward pass forbids it."""
        if n not in self._tangents:
            given = self.sized(self.shapes, n), self.shapes.variables.params
            try:
                self._tangents[n] = lookups.in_own_rows(jax.make_jaxpr(self.tangents)(*given))
            except (TypeError, NotImplementedError):
                self._tangents[n] = None
        return self._tangents[n]

    def traced(self, function: Callable[[Given], PyTree], n: int) -> jax_core.ClosedJaxpr:
        """A function, traced for n examples."""
        return jax.make_jaxpr(function)(self.sized(self.shapes, n))
