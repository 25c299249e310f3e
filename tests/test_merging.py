"""Merging programs: few, none slower than the plan that merges nothing, and for no bad reason."""

import dataclasses
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxexp.nn.classification import cost
from jaxexp.planning import merging
from jaxexp.planning.cost import MACHINES, Cost, Workload
from jaxexp.planning.loads import Load, least_of
from jaxexp.planning.merging import Merger
from jaxexp.planning.plan import plan
from jaxexp.planning.programs import Plan
from jaxexp.spec.hyperparameters import static, traced
from jaxexp.spec.padding import ProgramSpec, bounds
from jaxexp.spec.sweep import Sweep
from jaxexp.spec.trial import MLPTrial, Trial


def digits_cost(trial: MLPTrial) -> Cost:
    return dataclasses.replace(cost(trial, 64, 10), microbatches=trial.dropout == 0)


DIGITS = Workload(1078, digits_cost, evaluated=1797)


def points(count: int, seed: int = 0, **base) -> list[MLPTrial]:
    """Random points of which hardly two agree in any size."""
    drawn = random.Random(seed)
    return [
        MLPTrial(
            learning_rate=10 ** drawn.uniform(-4, 0),
            width=drawn.randint(8, 64),
            depth=drawn.randint(1, 8),
            batch_size=drawn.randint(32, 512),
            **base,
        )
        for _ in range(count)
    ]


def planned(trials, workload: Workload = DIGITS, **options) -> Plan:
    sweeps = [Sweep(trial, name=str(i)) for i, trial in enumerate(trials)]
    return plan(sweeps, 2, workload, **options)


def seconds(made: Plan) -> float:
    return sum(p.estimate.seconds + p.estimate.compile_seconds for p in made.programs)


def groups(made: Plan) -> set[frozenset[Trial]]:
    return {frozenset(trial for trial, _ in program.members) for program in made.programs}


@pytest.mark.parametrize(
    ("examples", "epochs", "seed"),
    [
        (1078, 5, 0),
        (50_000, 50, 0),
        *(pytest.param(*own, marks=pytest.mark.nightly) for own in ((1078, 50, 1), (50_000, 5, 2))),
    ],
)
def test_two_hundred_random_points_are_at_most_twelve_programs(examples, epochs, seed):
    workload = dataclasses.replace(DIGITS, examples=examples)
    trials = points(200, seed, epochs=epochs)
    made = planned(trials, workload)
    assert len(made.programs) <= 12
    members = [trial for program in made.programs for trial, _ in program.members]
    assert len(members) == len(set(members)) == 200
    assert set(members) == set(trials)
    assert seconds(made) <= min(
        seconds(planned(trials, workload, mode=mode)) for mode in ("exact", "one")
    )


@given(
    st.integers(1, 40), st.integers(0, 1000), st.sampled_from([1, 50]),
    st.sampled_from([100, 10_000, 1_000_000]),
)  # fmt: skip
def test_merging_never_costs_more_than_it_saves(count, seed, epochs, examples):
    workload = dataclasses.replace(DIGITS, examples=examples)
    trials = points(count, seed, epochs=epochs)
    auto, exact = (planned(trials, workload, mode=mode) for mode in ("auto", "exact"))
    assert seconds(auto) <= seconds(exact) * (1 + 1e-9)


@pytest.mark.nightly
@settings(max_examples=settings.default.max_examples // 2)
@given(st.randoms(use_true_random=False), st.sampled_from([8, merging.MOST]))
def test_groups_do_not_depend_on_the_order_of_the_trials(random, most):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merging, "MOST", most)  # more groups are halved first
        trials = points(40, epochs=50)
        made = planned(trials)
        random.shuffle(trials)
        assert groups(planned(trials)) == groups(made)


MANY = dataclasses.replace(DIGITS, examples=20_000)


def test_many_groups_are_halved_and_merged_as_well(monkeypatch):
    trials = points(200, epochs=50)
    best = planned(trials, MANY)
    monkeypatch.setattr(merging, "MOST", 32)
    halved = planned(trials, MANY)
    assert groups(halved) != groups(best)
    assert seconds(halved) < 1.25 * seconds(best)
    assert len(halved.programs) <= 16


def test_fewer_programs_may_take_hardly_longer_than_the_best(monkeypatch):
    trials = points(200, epochs=50)
    few, slack = planned(trials, MANY), merging.SLACK
    monkeypatch.setattr(merging, "SLACK", 0.0)
    best = planned(trials, MANY)
    assert len(few.programs) < len(best.programs)
    assert seconds(best) < seconds(few) <= (1 + slack) * seconds(best)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetTrial(MLPTrial):
    norm: str = static("layer")
    noise: float = traced(0.5, off=0.0)
    fade: float = traced(0.0, off=0.0, at_least=0, below=1)
    turns: int = traced(3, off=3, at_most=3)
    clip: float = traced(1e30, off=1e30, above=0)
    fixed: int = traced(1, off=1, at_least=1, at_most=1)


def test_what_is_static_or_an_option_is_never_merged():
    trials = [
        NetTrial(width=width, norm=norm, activation=activation, epochs=1)
        for width in (8, 9, 10)
        for norm in ("layer", "none")
        for activation in ("relu", "tanh")
    ]
    made = planned(trials)
    assert len(made.programs) == 4
    for program in made.programs:
        assert len({(t.norm, t.activation) for t in program.trials}) == 1


def test_the_estimate_is_that_of_the_plan():
    """Of widths for each layer and rates that are off in some: padding sees them as programs do."""

    def of(trial: Trial) -> Cost:
        made = digits_cost(trial)
        on = bool(trial.noise) + bool(trial.fade)
        return dataclasses.replace(made, launches=made.launches * (1 + on))

    trials = [
        NetTrial(width=width, depth=2, noise=noise, fade=fade, batch_size=batch, epochs=epochs)
        for width, noise, fade, batch, epochs in [
            ((8, 4), 0.0, 0.0, 32, 3), ((8, 4), 0.2, 0.3, 32, 3), (16, 0.0, 0.4, 512, 5),
            ((4, 8), 0.0, 0.0, 70, 5),
        ]
    ]  # fmt: skip
    workload = dataclasses.replace(DIGITS, cost=of)
    for some in (trials[:2], trials[::2], trials[2:], trials):
        least = least_of(trials)  # of more trials than one program may have
        merger = Merger(least, workload, MACHINES["cpu"])
        bounding = [bound for t in some for bound in bounds(ProgramSpec.of([t]))]
        loads = [Load.of(workload, 1, t.epochs, t, least) for t in some]
        joined = merger.joined(merger.groups(bounding, loads))
        assert joined.seconds == pytest.approx(seconds(planned(some, workload, mode="one")))


def test_rates_that_are_on_in_a_trial_are_on_in_its_bound():
    trials = [NetTrial(), NetTrial(noise=0.0, fade=0.9, turns=-2, clip=0.1)]
    assert NetTrial.fields()["fixed"].on == 1  # nothing else is allowed
    for some in (trials, trials[:1], trials[1:]):
        [bound] = bounds(ProgramSpec.of(some))
        bound.check()
        for name, off in (("noise", 0.0), ("fade", 0.0), ("turns", 3), ("clip", 1e30)):
            on = any(getattr(trial, name) != off for trial in some)
            assert (getattr(bound, name) != off) == on, name
