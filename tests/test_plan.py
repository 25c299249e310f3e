"""Properties of every plan."""

from hypothesis import assume, given
from hypothesis import strategies as st

from jaxexp.plan import Plan, plan
from jaxexp.sweep import RECORDS, Sweep
from jaxexp.trial import MLPTrial

EXAMPLES = 1000
VALUES = {
    "learning_rate": [1.0, 1e-2, 1e-3, 1e-5],
    "seed": [0, 1, 2, 3, 4],
    "depth": [1, 2, 6],
    "batch_size": [16, 128],
    "epochs": [1, 10],
    "batch_norm": [False, True],
}


@st.composite
def sweeps(draw) -> Sweep:
    names = draw(st.permutations(list(VALUES)))[: draw(st.integers(0, 4))]
    choices = {
        name: st.lists(st.sampled_from(VALUES[name]), min_size=1, unique=True) for name in names
    }
    record = draw(st.lists(st.sampled_from(RECORDS), unique=True))
    axes = {name: draw(values) for name, values in choices.items()}
    return Sweep(base=MLPTrial(), axes=axes, record=tuple(record))


some_sweeps = st.lists(sweeps(), min_size=1, max_size=4)
some_devices = st.integers(1, 9)


def groups(made: Plan) -> set:
    return {(frozenset(program.trials), program.record) for program in made.programs}


@given(some_sweeps, some_devices)
def test_every_trial_is_in_one_program_of_its_kind(some, devices):
    made = plan(some, devices, EXAMPLES)
    planned = [trial for program in made.programs for trial in program.trials]
    assert len(planned) == len(set(planned)) == made.trials
    assert set(planned) == {trial for sweep in some for trial in sweep.trials()}
    kinds = [{trial.static() for trial in program.trials} for program in made.programs]
    assert all(len(kind) == 1 for kind in kinds)
    assert len(set.union(*kinds)) == len(kinds)  # as few programs as there are kinds


@given(some_sweeps, some_devices)
def test_what_a_sweep_records_is_recorded(some, devices):
    program_of = {t: p for p in plan(some, devices, EXAMPLES).programs for t in p.trials}
    for sweep in some:
        for trial in sweep.trials():
            assert set(sweep.record) <= set(program_of[trial].record)
    assert {r for p in program_of.values() for r in p.record} == {r for s in some for r in s.record}


@given(some_sweeps, some_devices)
def test_programs_are_spread_or_in_one_lane(some, devices):
    made = plan(some, devices, EXAMPLES)
    for program in made.programs:
        everywhere = len(program.trials) >= devices
        assert len(program.devices) == (devices if everywhere else 1)
        assert set(program.devices) <= set(range(devices))
    assert sorted(map(id, made.programs)) == sorted(
        map(id, [*made.spread, *(program for lane in made.lanes for program in lane)])
    )
    assert len(made.lanes) <= devices


@given(some_sweeps, some_devices)
def test_lanes_are_balanced(some, devices):
    lanes = plan(some, devices, EXAMPLES).lanes
    assume(lanes)
    work = [[program.work(EXAMPLES) for program in lane] for lane in lanes]
    work += [[]] * (devices - len(lanes))
    for lane in work:
        assert lane == sorted(lane, reverse=True)  # the longest first
        # No device was free sooner than the one that a program was given.
        assert sum(lane[:-1]) <= min(map(sum, work)) * (1 + 1e-9)


@given(some_sweeps, some_devices, st.randoms(use_true_random=False))
def test_plan_depends_on_nothing_but_the_trials(some, devices, random):
    made = plan(some, devices, EXAMPLES)
    assert plan(some, devices, EXAMPLES) == made
    turned = [
        Sweep(
            base=s.base, axes=dict(random.sample([*s.axes.items()], len(s.axes))), record=s.record
        )
        for s in random.sample(some, len(some))
    ]
    assert groups(plan(turned, devices, EXAMPLES)) == groups(made)


def test_printed_plan():
    sweep = Sweep(base=MLPTrial(epochs=3), axes={"depth": [1, 6], "seed": [0, 1]})
    alone = Sweep(base=MLPTrial(width=4))
    assert str(plan([sweep, alone], 2, EXAMPLES)).splitlines() == [
        "5 trials in 3 programs on 2 devices",
        "    2 trials ×   3 epochs on all devices: epochs=3",
        "    2 trials ×   3 epochs on all devices: epochs=3, depth=1",
        "    1 trials ×  50 epochs on device 0: width=4",
    ]
