"""Properties of every plan."""

import dataclasses
import functools
import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxexp.base.errors import UserError
from jaxexp.nn.classification import cost
from jaxexp.planning.cost import MACHINES, Cost, Workload
from jaxexp.planning.kinds import static_key
from jaxexp.planning.plan import MODES
from jaxexp.planning.plan import plan as plan_workload
from jaxexp.planning.programs import Plan
from jaxexp.spec.hyperparameters import static
from jaxexp.spec.padding import ProgramSpec, bounds
from jaxexp.spec.sweep import RECORDS, Sweep
from jaxexp.spec.trial import MLPTrial, Trial

EXAMPLES = 1000


def work_of(examples: int, **options) -> Workload:
    """MLPs of 2 inputs and 33 classes."""
    own = functools.partial(cost, inputs=2, outputs=33)
    return Workload(examples, lambda t: replace(own(t), microbatches=not t.batch_norm), **options)


def plan(sweeps, devices: int, workload: int | Workload = EXAMPLES, **options) -> Plan:
    """Of sweeps that need no names."""
    named = [dataclasses.replace(sweep, name=str(i)) for i, sweep in enumerate(sweeps)]
    made = workload if isinstance(workload, Workload) else work_of(workload)
    return plan_workload(named, devices, made, **options)


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
    made = plan(some, devices, mode=mode)
    members = [trial for program in made.programs for trial, _ in program.members]
    assert len(members) == len(set(members)) == made.trials
    assert set(members) == {trial for sweep in some for trial in sweep.trials()}


@given(some_sweeps, some_devices, modes)
def test_only_the_longest_of_equal_trials_is_trained(some, devices, mode):
    for program in plan(some, devices, mode=mode).programs:
        rests = [dataclasses.replace(trial, epochs=1) for trial in program.trials]
        assert len(rests) == len(set(rests))
        for trial, place in program.prefixes:
            whole = program.trials[place]
            assert dataclasses.replace(whole, epochs=trial.epochs) == trial
            assert trial.epochs < whole.epochs


@given(some_sweeps, some_devices)
def test_exact_programs_pad_nothing(some, devices):
    made = plan(some, devices, mode="exact")
    for program in made.programs:
        assert not program.spec.sizes
        assert not program.spec.choices
        assert program.estimate.padding < 1e-9
    kinds = [(static_key(program.trials[0]), program.epochs) for program in made.programs]
    assert len(set(kinds)) == len(kinds)  # as few programs as there are kinds


@given(some_sweeps, some_devices)
def test_one_is_one_and_auto_lies_between(some, devices):
    one, auto, exact = (plan(some, devices, mode=m) for m in ("one", "auto", "exact"))
    assert len(one.programs) == 1
    assert len(one.programs) <= len(auto.programs) <= len(exact.programs)
    work = [sum(program.estimate.seconds for program in p.programs) for p in (auto, exact)]
    saved = len(exact.programs) - len(auto.programs)
    assert work[0] - work[1] <= saved * MACHINES["cpu"].compile_seconds + 1e-9
    assert not any(program.spec.choices for program in auto.programs)


def test_auto_pads_where_it_pays_and_not_where_it_does_not():
    widths = Sweep(base=MLPTrial(epochs=1), axes={"width": [15, 16]})
    [program] = plan([widths], 4).programs
    assert program.spec.sizes == (("width", 15, 16),)
    long = Sweep(base=MLPTrial(epochs=1000), axes={"width": [4, 256]})
    assert len(plan([long], 4, 100_000).programs) == 2
    batches = Sweep(base=MLPTrial(epochs=10), axes={"batch_size": [1, 1024]})
    assert len(plan([batches], 4, 100_000).programs) == 2


@given(some_sweeps, some_devices, modes)
def test_what_a_sweep_records_is_recorded(some, devices, mode):
    made = plan(some, devices, mode=mode)
    program_of = {t: p for p in made.programs for t, _ in p.members}
    for sweep in some:
        for trial in sweep.trials():
            assert set(sweep.record) <= set(program_of[trial].record)
    assert {r for p in program_of.values() for r in p.record} == {r for s in some for r in s.record}


@given(some_sweeps, some_devices, modes)
def test_programs_are_placed_on_devices_that_are_there(some, devices, mode):
    made = plan(some, devices, mode=mode)
    for program in made.programs:
        assert set(program.devices) <= set(range(devices))
        assert 1 <= len(program.devices) <= min(devices, len(program.trials))
        assert len(program.devices) == devices or len(program.trials) < devices
    assert sorted(map(id, made.programs)) == sorted(
        id(p) for stream in made.streams for p in stream
    )


def test_streams_are_balanced():
    """Nine trials of shapes that cannot share: no device has two while another has none."""
    base = MLPTrial(epochs=100)
    sweep = Sweep(base=base, axes={"width": [16, 32, 64, 128], "batch_norm": [False, True]})
    made = plan([sweep], 4, 100_000, mode="exact")
    busy = [0.0] * 4
    for program in made.programs:
        busy[program.devices[0]] += program.estimate.seconds
    longest = max(program.estimate.seconds for program in made.programs)
    assert max(busy) <= max(longest, sum(busy) / 4 * 4 / 3) * (1 + 1e-9)  # Graham's bound


@given(some_sweeps, some_devices, modes, st.randoms(use_true_random=False))
def test_plan_depends_on_nothing_but_the_trials(some, devices, mode, random):
    made = plan(some, devices, mode=mode)
    assert plan(some, devices, mode=mode) == made
    turned = [
        Sweep(s.base, dict(random.sample([*s.axes.items()], len(s.axes))), record=s.record)
        for s in random.sample(some, len(some))
    ]
    assert groups(plan(turned, devices, mode=mode)) == groups(made)


def test_widths_of_each_layer_share_a_program_where_it_pays():
    near = Sweep(base=MLPTrial(epochs=1, depth=2), axes={"width": [(16, 15), (15, 16), 16]})
    [program] = plan([near], 4).programs
    assert program.spec.sizes == (("width", 15, 16),)
    assert 0 < program.estimate.padding < 0.1
    assert len(plan([near], 4, mode="exact").programs) == 3
    far = Sweep(base=MLPTrial(epochs=1000, depth=2), axes={"width": [(256, 2), (2, 256), 256]})
    made = plan([far], 4, 100_000)
    assert len(made.programs) == 3
    assert "depth=2, width=256-2" in str(made)
    assert plan([far], 4, 100_000, mode="one").programs[0].estimate.padding > 0.5


def test_batches_are_computed_in_parts_where_the_task_says_so_and_it_pays():
    sizes = Sweep(MLPTrial(epochs=50, width=64), {"batch_size": [96, 300, 512], "depth": [1, 2, 9]})
    made = plan([sizes], 2, 50_000, mode="one")
    [program] = made.programs
    assert program.one_by_one
    assert program.microbatch in {48, 64, 96, 128}
    assert f"one after another, {program.microbatch} examples at a time" in str(made)
    norm = replace(sizes, base=sizes.base.replace(batch_norm=True))
    assert {own.microbatch for own in plan([norm], 2, 50_000, mode="one").programs} == {None}
    same = Sweep(MLPTrial(epochs=50, width=64), {"learning_rate": [1.0, 0.1], "seed": range(4)})
    [program] = plan([same], 2, 50_000).programs
    assert (program.one_by_one, program.microbatch) == (False, None)


def test_trials_one_after_another_are_dealt_to_any_number_of_devices():
    """The order decides the program's name, and the checkpoints are read on any devices."""
    sizes = {"depth": [1, 2, 4, 8], "batch_size": [32, 64, 128, 256], "seed": range(2)}
    sweep = Sweep(MLPTrial(epochs=50, width=64), sizes)
    made = [plan([sweep], devices, mode="one").programs[0] for devices in (1, 2, 4)]
    assert made[0].one_by_one
    assert len({program.id for program in made}) == 1
    for program, devices in zip(made, (1, 2, 4), strict=True):
        own = [sum(part) for part in batched(program.estimate.shares, 32 // devices)]
        assert max(own) < 1.35 / devices


def batched(values, n):
    return [values[i : i + n] for i in range(0, len(values), n)]


@pytest.mark.parametrize("backend", ["gpu", "tpu"])
def test_accelerators_train_side_by_side(backend):
    sizes = Sweep(MLPTrial(epochs=50), {"width": [8, 64], "batch_size": [32, 1024]})
    made = plan([sizes], 2, 50_000, backend=backend, mode="one")
    assert not any(program.one_by_one for program in made.programs)


def test_a_program_knows_how_many_widths_its_trials_have():
    """Equal shapes compile once, and a program of one width for all layers reads another array."""
    one, other, each = (MLPTrial(depth=2, width=width) for width in (8, 4, (8, 4)))
    assert ProgramSpec.of([one, other]) != ProgramSpec.of([one, each])
    assert ProgramSpec.of([one, other]).leaves([one, other])["width"].tolist() == [8, 4]
    assert ProgramSpec.of([one, each]).leaves([one, each])["width"].tolist() == [[8, 8], [8, 4]]


def test_cost_counts_the_weights_that_are_there():
    for trial in (MLPTrial(depth=3, width=(64, 32, 16)), MLPTrial(depth=3, width=16)):
        shapes = itertools.pairwise((2, *trial.widths, 33))
        weights = sum(inputs * units + units for inputs, units in shapes)
        assert cost(trial, 2, 33).parameters == weights


def test_bad_modes_are_told():
    with pytest.raises(UserError, match="programs='many': expected one of auto, exact, one"):
        plan([Sweep(base=MLPTrial())], 1, mode="many")
    with pytest.raises(UserError, match="of different classes"):
        plan([Sweep(base=MLPTrial()), Sweep(base=Trial())], 1, mode="one")


@given(some_sweeps, some_devices, modes)
def test_chunks_are_equal_and_full(some, devices, mode):
    for program in plan(some, devices, mode=mode).programs:
        full = program.chunk * len(program.devices)
        assert program.filled() % full == 0
        assert 0 <= program.filled() - len(program.trials) < full + len(program.devices)


def test_large_grids_are_trained_in_chunks():
    many = Sweep(base=MLPTrial(), axes={"seed": range(1000)})
    [program] = plan([many], 4, 100_000).programs
    assert 1 < program.chunk < 250
    [bound] = bounds(program.spec)
    activations = 4 * cost(bound, 2, 33).activations * bound.batch_size
    assert program.chunk * activations <= MACHINES["cpu"].cache_bytes


def test_a_grid_that_cannot_fit_is_told_before_it_runs():
    grid = Sweep(base=MLPTrial(), axes={"seed": range(100)})
    needed = plan([grid], 4, 100_000).memory
    assert plan([grid], 4, 100_000, host_memory=needed).memory == needed
    with pytest.raises(
        UserError, match=r"100 trials need about \d+ MB of memory for their arrays, and 1 MB may be"
    ):
        plan([grid], 4, 100_000, host_memory=1e6)


def test_printed_plan():
    sweep = Sweep(base=MLPTrial(epochs=3), axes={"depth": [1, 6], "seed": [0, 1]})
    alone = Sweep(base=MLPTrial(width=4, batch_norm=True))
    lines = str(plan([sweep, alone], 2)).splitlines()
    assert lines[0].startswith("5 trials in 2 programs on 2 cpu devices, about ")
    assert lines[1].startswith("    4 × 3 epochs on all devices: depth 1 to 6; padding ")
    assert lines[2] == "    1 × 50 epochs on device 0: width=4, batch_norm=True"


def test_programs_that_share_compiled_functions_share_the_seconds(monkeypatch):
    rates = Sweep(MLPTrial(epochs=3), {"learning_rate": [10.0**-n for n in range(11)]})
    [whole] = plan([rates], 1).programs
    state = whole.estimate.state_bytes / len(whole.trials)
    small = dataclasses.replace(MACHINES["cpu"], state_bytes=3.5 * state, compile_seconds=3.0)
    monkeypatch.setitem(MACHINES, "cpu", small)

    def compiling(*sweeps: Sweep, **options) -> list[tuple[int, float]]:
        programs = plan(sweeps, 1, **options).programs
        return [(len(p.trials), p.estimate.shared_compile_seconds) for p in programs]

    # Three of three trials are compiled once, the one of the rest by itself.
    assert sorted(compiling(rates)) == [(2, 3.0), (3, 1.0), (3, 1.0), (3, 1.0)]
    assert sorted(compiling(rates, nodes=2)) == [(2, 3.0), (3, 2.0), (3, 2.0), (3, 2.0)]
    assert sum(own for _, own in compiling(rates, nodes=5)) == 4 * 3
    # One that has a rate on that is off in the others has functions of its own.
    dropped = dataclasses.replace(rates, base=rates.base.replace(dropout=0.1))
    assert sum(own for _, own in compiling(rates, dropped, mode="exact")) == 4 * 3
    # Where an optimizer has to know the number of steps, that of another length is another.
    longer = dataclasses.replace(rates, base=rates.base.replace(epochs=5, seed=1))
    assert sum(own for _, own in compiling(rates, longer, mode="exact")) == 2 * 3
    told = work_of(EXAMPLES, run_length_matters=lambda trial: True)
    assert sum(own for _, own in compiling(rates, longer, workload=told, mode="exact")) == 4 * 3


def test_two_sweeps_of_one_name_are_told():
    sweeps = [Sweep(MLPTrial()), Sweep(MLPTrial(), {"seed": [1, 2]})]
    with pytest.raises(UserError, match="two sweeps are named 'sweep': give each a name of its"):
        plan_workload(sweeps, 1, work_of(EXAMPLES))


def test_prefixes_are_trained_where_the_run_length_matters():
    sweep = Sweep(MLPTrial(), {"epochs": [1, 2, 10], "seed": [0, 1]})
    [program] = plan([sweep], 2).programs
    assert (len(program.trials), len(program.prefixes)) == (2, 4)
    for mode, count in (("exact", 3), ("one", 1), ("auto", 1)):
        workload = work_of(EXAMPLES, run_length_matters=lambda trial: True)
        made = plan([sweep], 2, workload, mode=mode)
        assert len(made.programs) == count
        assert not any(program.prefixes for program in made.programs)
        assert {t for p in made.programs for t in p.trials} == set(sweep.trials())


def test_batches_of_one_size_stay_together_where_they_cannot_be_padded():
    sweep = Sweep(MLPTrial(epochs=1), {"batch_size": [31, 32], "width": [15, 16]})
    assert len(plan([sweep], 2).programs) == 1
    made = plan([sweep], 2, work_of(EXAMPLES, pads_batches=False))
    assert [{t.batch_size for t in p.trials} for p in made.programs] in ([{31}, {32}], [{32}, {31}])


def test_trials_of_one_size_stay_together_where_their_models_cannot_be_padded():
    sweep = Sweep(MLPTrial(epochs=1), {"batch_size": [31, 32], "width": [15, 16]})
    made = plan([sweep], 2, work_of(EXAMPLES, pads_sizes=lambda trials: False))
    assert [{t.width for t in p.trials} for p in made.programs] in ([{15}, {16}], [{16}, {15}])


def test_shares_are_those_of_the_work():
    """Of a member as trained alone: twice the epochs, twice the share."""
    sweep = Sweep(MLPTrial(), {"epochs": [10, 20], "width": [8, 16]})
    [program] = plan([sweep], 1, mode="one").programs
    shares = dict(zip([t for t, _ in program.members], program.estimate.shares, strict=True))
    assert sum(shares.values()) == pytest.approx(1)
    for width in (8, 16):
        short, long = (shares[MLPTrial(epochs=epochs, width=width)] for epochs in (10, 20))
        assert long == pytest.approx(2 * short)
    assert shares[MLPTrial(epochs=10, width=16)] > shares[MLPTrial(epochs=10, width=8)]


@given(some_sweeps, some_devices, modes)
def test_trials_of_a_timed_sweep_train_alone_after_all_others(some, devices, mode):
    timed = Sweep(MLPTrial(epochs=3), {"batch_size": [16, 128]}, timed=True)
    made = plan([*some, timed], devices, mode=mode)
    assert [p.alone for p in made.programs] == sorted(p.alone for p in made.programs)
    assert {t for p in made.alone for t in p.trials} == set(timed.trials())
    for program in made.alone:
        assert (len(program.trials), program.devices, program.prefixes) == (1, (0,), ())
    assert not any(program.alone for stream in made.streams for program in stream)


@pytest.mark.parametrize("timed", [False, True])
def test_what_a_class_makes_of_its_values_is_not_asked_of_others(timed):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Own(MLPTrial):
        def __post_init__(self):
            assert min(self.epochs - 2, self.seed) > 1

    sweep = Sweep(Own(epochs=4, seed=2), {"epochs": [4, 8]}, timed=timed)
    programs = plan([sweep], 1).programs
    assert [len(program.prefixes) for program in programs] == ([0, 0] if timed else [1])


def test_timed_trials_whose_seeds_are_static_have_a_program_each():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Own(MLPTrial):
        seed: int = static(0)

    sweep = Sweep(Own(), {"seed": [0, 1], "learning_rate": [0.1, 0.2]}, timed=True)
    assert [len(program.trials) for program in plan([sweep], 1).programs] == [1] * 4


def test_memory_is_of_each_device_and_counts_the_data():
    """Two large programs on devices of their own, and a third that shares one of them."""
    sweep = Sweep(MLPTrial(epochs=100), {"width": [100, 400, 800]})
    bare, with_data = (
        plan([sweep], 2, work_of(EXAMPLES, data_bytes=b), mode="exact") for b in (0, 1e6)
    )
    for device in (0, 1):
        own = [p for p in bare.programs if device in p.devices]
        assert own
        streams = [s for s in bare.streams if device in s[0].devices]
        largest = [max(p.estimate.device_bytes / len(p.devices) for p in s) for s in streams]
        assert bare.device_bytes(device) == pytest.approx(sum(largest))
        assert with_data.device_bytes(device) == pytest.approx(bare.device_bytes(device) + 1e6)
    assert with_data.memory == pytest.approx(bare.memory + 2e6)
    limits = [with_data.device_bytes(device) for device in (0, 1)]
    assert limits[0] != pytest.approx(limits[1])
    workload = work_of(EXAMPLES, data_bytes=1e6)
    assert plan([sweep], 2, workload, mode="exact", device_memory=limits) == with_data
    for device in (0, 1):
        less = list(limits)
        less[device] *= 0.99
        with pytest.raises(UserError, match=rf"on device {device}, .* may be used there"):
            plan([sweep], 2, workload, mode="exact", device_memory=less)
    with pytest.raises(UserError, match=r"3 trials need about .* of memory for their arrays"):
        plan([sweep], 2, workload, mode="exact", device_memory=limits, host_memory=1e3)


@given(
    st.integers(1, 300), st.integers(1, 5), st.floats(1e4, 1e8), st.integers(1, 10_000),
    st.integers(1, 10_000), st.sampled_from(["auto", "exact"]),
)  # fmt: skip
def test_what_a_device_has_memory_for_one_trial_of_it_has_for_any_number(
    trials, devices, memory, parameters, activations, mode
):
    workload = Workload(EXAMPLES, lambda trial: Cost(1e6, 3, parameters, activations))

    def refused(n):
        options = {"mode": mode, "backend": "tpu", "device_memory": [memory] * devices}
        try:
            made = plan([Sweep(Trial(), {"seed": range(n)})], devices, workload, **options)
        except UserError as error:
            return str(error)
        assert made.trials == n
        return ""

    assert refused(trials) == refused(1)


def test_a_cost_of_the_tasks_own_decides():
    """Ten times as many parameters, more than ten times the memory."""

    def of(parameters: int) -> Plan:
        workload = Workload(EXAMPLES, lambda trial: Cost(1e3, 3, parameters, 10))
        return plan([Sweep(Trial(), {"seed": range(10)})], 2, workload)

    few, many = of(10_000), of(100_000)
    assert many.memory > 5 * few.memory
    assert few.programs[0].trials == many.programs[0].trials


def test_what_a_program_has_to_know_of_a_trial():
    trial = MLPTrial()
    assert static_key(trial) == static_key(trial.replace(seed=4, learning_rate=0.1))
    assert static_key(trial) != static_key(trial.replace(depth=3))
    # A rate that is on does not make the trials without it compute it.
    assert static_key(trial) != static_key(trial.replace(dropout=0.1))
    assert static_key(trial.replace(dropout=0.2)) == static_key(trial.replace(dropout=0.1))
