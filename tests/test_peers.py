"""The peers of the benchmark do the work that they are timed for."""

import sys
from pathlib import Path

import numpy as np
import pytest
from nights import at_night

from jaxexp.cli.benchmarks import benchmark

torch = pytest.importorskip("torch")
peers = pytest.importorskip("benchmarks.peers")

RATES, SEEDS = (1e-3, 3e-3, 1e-3), (0, 0, 1)


def workload(**changes) -> peers.Workload:
    """300 points on a plane, told apart by their quadrant, in batches of 64 and a rest of 44."""
    x_Nx2 = np.random.default_rng(0).normal(size=(300, 2)).astype(np.float32)
    y_N = (2 * (x_Nx2[:, 0] > 0) + (x_Nx2[:, 1] > 0)).astype(np.int32)
    options = {"depth": 2, "width": 8, "batch_size": 64, "epochs": 2} | changes
    return peers.Workload(x_Nx2, y_N, 4, RATES, SEEDS, **options)


@pytest.mark.parametrize(
    "name", at_night(["report_loop", "resident_loop", "vmap_eager"], "resident_loop")
)
def test_uncompiled_peers_time_every_epoch(name):
    timing = getattr(peers, name)(workload())
    assert timing.epoch_s
    assert all(seconds > 0 for seconds in timing.epoch_s)


@pytest.mark.parametrize("gradient", ["_loss_and_gradient", "_functional_loss_and_gradient"])
def test_the_compiled_steps_are_those_of_pytorch(gradient):
    """Compiled, `_steps` is the strongest peer; here it runs as it is written."""
    work = workload()
    compiled = peers._Compiled(work, getattr(peers, gradient))
    weights_TxP = compiled.state[0].clone()
    x_FxN, y_N = compiled.x_FxN, compiled.y_N
    shuffles = len(compiled.generators)
    state, _ = compiled._steps(
        compiled.state, x_FxN.expand(shuffles, -1, -1), y_N.expand(shuffles, -1)
    )
    for t, rate in enumerate(RATES):
        flat_P = weights_TxP[t].clone().requires_grad_()
        adam = torch.optim.Adam([flat_P], rate)
        for x_FxB, y_B in zip(x_FxN.split(64, -1), y_N.split(64), strict=True):
            layers = peers._layers(flat_P[None], work.sizes)
            logits_OxB = peers._forward(layers, x_FxB[None])[-1][0]
            loss = torch.nn.functional.cross_entropy(logits_OxB.T, y_B.long())
            adam.zero_grad()
            loss.backward()
            adam.step()
        # Five steps in float32: only rounding may differ.
        torch.testing.assert_close(state[0][t], flat_P.detach(), rtol=1e-5, atol=1e-6)


def test_a_peer_that_does_not_train_is_refused():
    losses_T = torch.ones(3)
    with pytest.raises(RuntimeError, match="did not train"):
        peers._verify_learned(workload(), losses_T, losses_T)
    with pytest.raises(RuntimeError, match="did not train"):
        peers._verify_learned(workload(), losses_T, torch.full((3,), torch.nan))


@pytest.mark.nightly
def test_a_grid_is_timed_with_and_without_evaluation(problem):
    from benchmarks import grid
    from jaxexp.reproduce.tables import Places, Split

    tables = [Split(part.x, part.y) for part in problem.data.splits.values()]
    tables[0] = Split(np.resize(tables[0].x_Nx2, (300, 2)), np.resize(tables[0].y_N, 300))
    places = Places(*tables, problem.data.classes, "rings")
    rows = grid.time_grid(places, [1e-2, 1e-3], 2, 2, 4)
    (_, whole, _), (_, training, _) = rows[grid.OURS], rows[grid.TRAINING]
    assert len(whole) == len(training) == 2
    assert all(0 < part < all_of_it for part, all_of_it in zip(training, whole, strict=True))
    assert grid.TRAINING in grid._table(rows).columns[0]._cells


@pytest.mark.nightly
def test_searches_are_compared_at_equal_budgets(problem, monkeypatch):
    searches = benchmark("searches")
    monkeypatch.setattr(searches, "places_problem", lambda inputs: problem)
    digits, rings = searches.places(Path(), quick=True)
    assert rings.data is problem.data
    made = {own.name: own for own in searches.searches(digits)}
    found = {name: searches.measure(own, range(2)) for name, own in made.items()}
    for own in found.values():
        assert own.epochs[0] == own.epochs[1]
        assert min(own.validation) > 0.2
        assert min(own.first, *own.seconds, *own.busy) > 0
        if own.search.name != "random, all points" and own.search.against:
            spent = own.epochs[0] - found[own.search.against].epochs[0]
            assert abs(spent) <= digits.base.epochs / 2
    # Halving chooses among the points that are trained to the end.
    assert max(found["halving"].validation) <= max(found["random, all points"].validation) + 0.01
    table = searches.table(list(found.values()))
    assert table.row_count == len(found)
    regrets = list(table.columns[7].cells)
    assert any("(0.000–" in regret for regret in regrets)


@pytest.mark.integration
def test_searches_say_that_the_places_are_missing(monkeypatch, capsys):
    searches = benchmark("searches")
    monkeypatch.setattr(searches, "searches", lambda place: [])
    monkeypatch.setattr(searches, "table", lambda found: "a table")
    searches.compare(None, quick=True)
    printed = capsys.readouterr().out
    assert "files are not given (--data)" in printed
    assert printed.count("a table") == printed.count("to choose by") == 1


def test_benchmarks_are_never_those_of_another_folder(tmp_path, monkeypatch):
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "grid.py").write_text("raise SystemExit('another')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "benchmarks"]:
        monkeypatch.delitem(sys.modules, name)
    assert tmp_path not in Path(benchmark("grid").__file__).parents


@pytest.mark.nightly
@pytest.mark.integration
def test_a_search_beside_scikit_learns_trains_both(capsys):
    benchmark("crossvalidation").compare(quick=True)
    said = capsys.readouterr().out
    assert "2 learning rates × 2 folds" in said
    for name in ("digits, 1,797", "breast cancer", "places, 2,000"):  # cells may be wrapped
        assert name in said
