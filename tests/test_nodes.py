"""Plans for several nodes: how they are cut, in which order nodes take programs, the forecast."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxexp as jx
from jaxexp.cli.main import main
from jaxexp.planning.nodes import NOTICE_SECONDS, SNAPSHOT_SECONDS, Queue, forecast, seconds_of
from jaxexp.planning.programs import Estimate, Plan, Program


def data(n=60_000):
    rng = np.random.default_rng(0)
    return jx.arrays(rng.normal(size=(n, 20)).astype(np.float32), np.arange(n) % 3)


def sweep(epochs, rates=20):
    axes = {"learning_rate": np.geomspace(1e-4, 1e-1, rates), "width": [16, 64], "seed": range(5)}
    return jx.Sweep(jx.MLPTrial(epochs=epochs), axes)


def planned(epochs=2000, nodes=8, **options):
    return jx.plan(
        sweep(epochs), data=data(), memory=1e15, nodes=nodes, devices=4, target="h100", **options
    )


def programs(*works, compiling=10.0):
    """Of so many seconds each on one device; those of one width share what is compiled."""
    return tuple(
        Program(
            trials=(jx.MLPTrial(width=width, seed=i),),
            devices=(0,),
            estimate=Estimate(seconds=seconds, compile_seconds=compiling),
        )
        for i, (seconds, width) in enumerate(works)
    )


def test_long_programs_are_cut_and_every_trial_trains_once():
    made = planned().plan
    assert len(made.programs) > 8
    trials = [trial for program in made.programs for trial in program.trials]
    assert len(trials) == len(set(trials)) == 200
    assert set(trials) == set(sweep(2000).trials())
    assert all(program.devices == (0, 1, 2, 3) for program in made.programs)
    assert forecast(planned(20_000, nodes=4).plan).excess < 0.05


def test_prefixes_stay_with_the_trial_that_they_are_a_prefix_of():
    own = jx.Sweep(jx.MLPTrial(), {"epochs": [1000, 2000], "seed": range(64)})
    made = jx.plan(own, data=data(), memory=1e15, nodes=8, devices=4, target="h100").plan
    assert len(made.programs) > 1
    found = [
        (short, program.trials[place])
        for program in made.programs
        for short, place in program.prefixes
    ]
    assert len(found) == 64
    assert all(dataclasses.replace(short, epochs=2000) == long for short, long in found)


def test_short_programs_and_those_of_one_node_are_not_cut():
    assert len(planned(1).plan.programs) <= 2
    assert len(planned(nodes=1).plan.programs) <= 2
    assert len(planned(programs="one").plan.programs) == 1


def test_one_node_takes_all_its_programs_one_after_another():
    made = Plan(programs((30.0, 8), (20.0, 8), (10.0, 16)), 1)
    found = forecast(made)
    assert found.makespan == found.lower_bound == 30 + 20 + 10 + 10 + 10
    assert found.compile_seconds == 20
    assert found.death_seconds == SNAPSHOT_SECONDS / 2 + NOTICE_SECONDS + 10
    assert found.lost(1.0, 1) == pytest.approx(found.death_seconds / 3600)
    assert found.lost(2.0, 4) == pytest.approx(found.lost(1.0, 1) / 2)


def test_more_devices_train_faster_but_compile_no_faster():
    [one] = programs((8.0, 8))
    times = [
        Plan((dataclasses.replace(one, devices=tuple(range(n))),), n, nodes=nodes).seconds
        for n, nodes in ((1, 1), (2, 1), (4, 1), (4, 2))
    ]
    assert times == [18, 14, 12, 12]
    two = [dataclasses.replace(p, devices=(0, 1)) for p in programs((8.0, 8), (8.0, 16))]
    assert Plan(tuple(two), 2).seconds == 10 + 8  # compiled side by side, trained in turn
    assert Plan(programs((8.0, 8), (8.0, 16)), 1).seconds == 20 + 16
    alone = tuple(dataclasses.replace(p, alone=True) for p in two)
    assert Plan(alone, 2).seconds == 10 + 8


def test_a_plan_for_several_nodes_says_one_time():
    made = Plan(programs(*[(100.0, 8)] * 4, *[(100.0, 16)] * 4), 1, nodes=2)
    assert forecast(made).makespan == 410
    assert " s, " not in str(made).partition("\n")[0]
    assert "about 440 s, " in str(dataclasses.replace(made, nodes=1, devices=2))
    [one] = programs((8.0, 8))
    said = forecast(Plan((one,), 1, nodes=2)).text(2)
    assert "; 10 s of compiling, on all nodes together" in said


def test_nodes_go_on_with_what_they_have_compiled():
    made = Plan(programs(*[(100.0, 8)] * 4, *[(100.0, 16)] * 4), 1, nodes=2)
    assert forecast(made).compile_seconds == 20  # each node one of both
    assert forecast(made).makespan == 410


def test_a_node_does_not_compile_what_ends_sooner_without_it():
    queue = Queue(programs((1.0, 8), (1.0, 8)))
    queue.end(queue.take("first", 1, 1))
    assert queue.take("second", 1, 1) is None  # after 11 seconds, the first after one more
    assert queue.take("first", 1, 1)
    assert not queue


def test_what_a_lost_node_had_is_taken_by_another():
    queue = Queue(programs((5.0, 8)))
    taken = queue.take("first", 1, 1)
    queue.lose("first")
    queue.end(taken)
    queue.put(taken)
    assert queue.take("second", 1, 1) is taken


def test_what_runs_alone_has_a_node_for_itself():
    [one] = programs((5.0, 8))
    queue = Queue([dataclasses.replace(one, alone=True)])
    assert queue.take("node", 3, 4) is None
    assert queue.take("node", 4, 4)


@given(
    st.lists(st.tuples(st.floats(0.1, 99), st.sampled_from([4, 8, 16])), min_size=1, max_size=30),
    st.integers(1, 5),
)
def test_no_schedule_beats_its_bound_and_all_programs_end(works, nodes):
    made = Plan(programs(*works), 1, nodes=nodes)
    found = forecast(made)
    every = sum(map(seconds_of, made.programs))
    assert found.lower_bound <= found.makespan * (1 + 1e-9)
    assert every / nodes <= found.makespan * (1 + 1e-9)
    assert found.makespan <= every + found.compile_seconds + 1e-6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nodes": 0}, "nodes=0: expected a whole number, at least 1"),
        ({"nodes": True}, "nodes=True: expected"),
        ({"nodes": 2, "target": "h100", "devices": 0}, "devices=0: expected a whole number"),
        ({"target": "h100", "devices": 2}, "expected none beside|its compiler cannot be used here"),
        ({"target": "tpu-v5e-4", "devices": 2}, "which has its own, unless nodes are given"),
        ({"target": "h100", "cluster": "auto"}, "expected only one of target and cluster"),
    ],
)
def test_wrong_nodes_are_refused(options, message):
    with pytest.raises(jx.UserError, match=message):
        jx.plan(sweep(1), data=data(1000), **options)


def test_the_command_tells_the_forecast(capsys):
    with pytest.raises(SystemExit) as status:
        main(
            [
                "plan",
                "learning_rate",
                "--nodes",
                "64",
                "--devices-per-node",
                "8",
                "--target",
                "h100",
            ]
        )
    assert status.value.code in (0, None)
    said = capsys.readouterr().out
    assert "on 64 nodes of 8 gpu devices" in said
    assert "until the last program has ended" in said
    assert "if a node died every hour" in said


def test_a_plan_for_nodes_of_absent_hardware_neither_compiles_nor_runs():
    with pytest.raises(jx.UserError, match="is not compiled"):
        planned(1).compiled()
    with pytest.raises(jx.UserError, match="which is not here"):
        jx.run(planned(1))
