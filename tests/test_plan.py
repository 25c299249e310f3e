"""Properties of every plan."""

import dataclasses
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxexp.base.errors import UserError
from jaxexp.planning.plan import MACHINES, MODES, Plan, plan
from jaxexp.spec.padding import Shape
from jaxexp.spec.sweep import RECORDS, Sweep
from jaxexp.spec.trial import MLPTrial, Trial

EXAMPLES = 1000
VALUES = {
    "learning_rate": [1.0, 1e-2, 1e-3, 1e-5],
    "seed": [0, 1, 2, 3, 4],
    "depth": [1, 2, 6],
    "width": [4, 16, 64],
    "batch_size": [16, 128],
    "epochs": [1, 10],
    "batch_norm": [False, True],
    "dropout": [0.0, 0.1, 0.2],
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
modes = st.sampled_from(MODES)


def groups(made: Plan) -> set:
    return {
        (frozenset(trial for trial, _ in program.members), program.record)
        for program in made.programs
    }


@given(some_sweeps, some_devices, modes)
def test_every_trial_is_answered_for_exactly_once(some, devices, mode):
    made = plan(some, devices, EXAMPLES, mode=mode)
    members = [trial for program in made.programs for trial, _ in program.members]
    assert len(members) == len(set(members)) == made.trials
    assert set(members) == {trial for sweep in some for trial in sweep.trials()}


@given(some_sweeps, some_devices, modes)
def test_only_the_longest_of_equal_trials_is_trained(some, devices, mode):
    for program in plan(some, devices, EXAMPLES, mode=mode).programs:
        rests = [dataclasses.replace(trial, epochs=1) for trial in program.trials]
        assert len(rests) == len(set(rests))
        for trial, place in program.beginnings:
            whole = program.trials[place]
            assert dataclasses.replace(whole, epochs=trial.epochs) == trial
            assert trial.epochs < whole.epochs


@given(some_sweeps, some_devices)
def test_exact_programs_pad_nothing(some, devices):
    made = plan(some, devices, EXAMPLES, mode="exact")
    for program in made.programs:
        assert not program.shape.sizes
        assert not program.shape.choices
        assert program.padding(EXAMPLES) < 1e-9
    kinds = [program.trials[0].static() for program in made.programs]
    assert len(set(kinds)) == len(kinds)  # as few programs as there are kinds


@given(some_sweeps, some_devices)
def test_one_is_one_and_auto_lies_between(some, devices):
    one, auto, exact = (plan(some, devices, EXAMPLES, mode=m) for m in ("one", "auto", "exact"))
    assert len(one.programs) == 1
    assert len(one.programs) <= len(auto.programs) <= len(exact.programs)
    work = [sum(program.work(EXAMPLES) for program in p.programs) for p in (auto, exact)]
    saved = len(exact.programs) - len(auto.programs)
    assert work[0] - work[1] <= saved * MACHINES["cpu"].compile_seconds + 1e-9
    assert not any(program.shape.choices for program in auto.programs)


def test_auto_pads_where_it_pays_and_not_where_it_does_not():
    widths = Sweep(base=MLPTrial(epochs=1), axes={"width": [15, 16]})
    [program] = plan([widths], 4, EXAMPLES).programs
    assert program.shape.sizes == (("width", 15, 16),)
    long = Sweep(base=MLPTrial(epochs=1000), axes={"width": [4, 256]})
    assert len(plan([long], 4, 100_000).programs) == 2
    batches = Sweep(base=MLPTrial(epochs=10), axes={"batch_size": [1, 1024]})
    assert len(plan([batches], 4, 100_000).programs) == 2


@given(some_sweeps, some_devices, modes)
def test_what_a_sweep_records_is_recorded(some, devices, mode):
    made = plan(some, devices, EXAMPLES, mode=mode)
    program_of = {t: p for p in made.programs for t, _ in p.members}
    for sweep in some:
        for trial in sweep.trials():
            assert set(sweep.record) <= set(program_of[trial].record)
    assert {r for p in program_of.values() for r in p.record} == {r for s in some for r in s.record}


@given(some_sweeps, some_devices, modes)
def test_programs_are_placed_on_devices_that_are_there(some, devices, mode):
    made = plan(some, devices, EXAMPLES, mode=mode)
    for program in made.programs:
        assert set(program.devices) <= set(range(devices))
        assert 1 <= len(program.devices) <= min(devices, len(program.trials))
        assert len(program.devices) == devices or len(program.trials) < devices
    assert sorted(map(id, made.programs)) == sorted(id(p) for lane in made.lanes for p in lane)


def test_lanes_are_balanced():
    """Nine trials of shapes that cannot share: no device has two while another has none."""
    base = MLPTrial(epochs=100)
    sweep = Sweep(base=base, axes={"width": [16, 32, 64, 128], "batch_norm": [False, True]})
    made = plan([sweep], 4, 100_000, mode="exact")
    busy = [0.0] * 4
    for program in made.programs:
        busy[program.devices[0]] += program.work(100_000)
    longest = max(program.work(100_000) for program in made.programs)
    assert max(busy) <= max(longest, sum(busy) / 4 * 4 / 3) * (1 + 1e-9)  # Graham's bound


@given(some_sweeps, some_devices, modes, st.randoms(use_true_random=False))
def test_plan_depends_on_nothing_but_the_trials(some, devices, mode, random):
    made = plan(some, devices, EXAMPLES, mode=mode)
    assert plan(some, devices, EXAMPLES, mode=mode) == made
    turned = [
        Sweep(
            base=s.base, axes=dict(random.sample([*s.axes.items()], len(s.axes))), record=s.record
        )
        for s in random.sample(some, len(some))
    ]
    assert groups(plan(turned, devices, EXAMPLES, mode=mode)) == groups(made)


def test_widths_of_each_layer_share_a_program_where_it_pays():
    near = Sweep(base=MLPTrial(epochs=1, depth=2), axes={"width": [(16, 15), (15, 16), 16]})
    [program] = plan([near], 4, EXAMPLES).programs
    assert program.shape.sizes == (("width", 15, 16),)
    assert 0 < program.padding(EXAMPLES) < 0.1
    assert len(plan([near], 4, EXAMPLES, mode="exact").programs) == 3
    far = Sweep(base=MLPTrial(epochs=1000, depth=2), axes={"width": [(256, 2), (2, 256), 256]})
    made = plan([far], 4, 100_000)
    assert len(made.programs) == 3
    assert "depth=2, width=256-2" in str(made)
    assert plan([far], 4, 100_000, mode="one").programs[0].padding(100_000) > 0.5


def test_a_program_knows_how_many_widths_its_trials_have():
    """Equal shapes compile once, and a program of one width for all layers reads another array."""
    one, other, each = (MLPTrial(depth=2, width=width) for width in (8, 4, (8, 4)))
    assert Shape.of([one, other]) != Shape.of([one, each])
    assert Shape.of([one, other]).leaves([one, other])["width"].tolist() == [8, 4]
    assert Shape.of([one, each]).leaves([one, each])["width"].tolist() == [[8, 8], [8, 4]]


def test_cost_counts_the_weights_that_are_there():
    for trial in (MLPTrial(depth=3, width=(64, 32, 16)), MLPTrial(depth=3, width=16)):
        shapes = itertools.pairwise((2, *trial.widths, 33))
        weights = sum(inputs * units + units for inputs, units in shapes)
        assert trial.cost().parameters == weights


def test_bad_modes_are_told():
    with pytest.raises(UserError, match="programs='many': expected one of auto, exact, one"):
        plan([Sweep(base=MLPTrial())], 1, EXAMPLES, mode="many")
    with pytest.raises(UserError, match="of different classes"):
        plan([Sweep(base=MLPTrial()), Sweep(base=Trial())], 1, EXAMPLES, mode="one")


@given(some_sweeps, some_devices, modes)
def test_turns_are_equal_and_full(some, devices, mode):
    for program in plan(some, devices, EXAMPLES, mode=mode).programs:
        turn = program.at_once * len(program.devices)
        assert program.filled() % turn == 0
        assert 0 <= program.filled() - len(program.trials) < turn + len(program.devices)


def test_large_grids_are_taken_in_turns():
    many = Sweep(base=MLPTrial(), axes={"seed": range(1000)})
    [program] = plan([many], 4, 100_000).programs
    assert 1 < program.at_once < 250
    activations = program.shape.bound().cost().activations * program.trials[0].batch_size * 4
    assert program.at_once * activations <= MACHINES["cpu"].cache_bytes


def test_a_grid_that_cannot_fit_is_told_before_it_runs():
    grid = Sweep(base=MLPTrial(), axes={"seed": range(100)})
    needed = plan([grid], 4, 100_000).memory
    assert plan([grid], 4, 100_000, memory=needed).memory == needed
    with pytest.raises(
        UserError, match=r"100 trials need about \d+ MB of memory for their arrays, and 1 MB may be"
    ):
        plan([grid], 4, 100_000, memory=1e6)


def test_printed_plan():
    sweep = Sweep(base=MLPTrial(epochs=3), axes={"depth": [1, 6], "seed": [0, 1]})
    alone = Sweep(base=MLPTrial(width=4, batch_norm=True))
    lines = str(plan([sweep, alone], 2, EXAMPLES)).splitlines()
    assert lines[0].startswith("5 trials in 2 programs on 2 cpu devices, about ")
    assert lines[1].startswith("    4 × 3 epochs on all devices: depth 1 to 6; padding ")
    assert lines[2] == "    1 × 50 epochs on device 0: width=4, batch_norm=True"
