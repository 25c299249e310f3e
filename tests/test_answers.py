"""Sentences and tables of section 7 from results that nobody has trained."""

import numpy as np
import pytest
import xarray as xr

from jaxexp.reproduce import answers


def results(accuracy: np.ndarray, diverged: np.ndarray | None = None) -> xr.Dataset:
    """Of (learning rate, seed): validation accuracies; 0.1 less in test, 0.1 more in training."""
    shifts = np.array([0.1, 0.0, -0.1])
    accuracy = np.asarray(accuracy, float)
    full = (accuracy[..., None] + shifts)[..., None, :]
    dims = ("learning_rate", "seed")
    return xr.Dataset(
        {
            "accuracy": ((*dims, "epoch", "split"), full),
            "loss": ((*dims, "epoch", "split"), 1 - full),
            "epochs_trained": (dims, np.ones(accuracy.shape, int)),
            "diverged_epoch": (
                dims,
                np.zeros(accuracy.shape, int) if diverged is None else diverged,
            ),
            "diverged_step": (dims, np.zeros(accuracy.shape, int)),
            "seconds": (dims, np.ones(accuracy.shape)),
            "probability": ((*dims, "image"), np.full((*accuracy.shape, 100), 0.5)),
        },
        coords={
            "learning_rate": 10.0 ** -np.arange(1, len(accuracy) + 1),
            "seed": np.arange(accuracy.shape[1]),
            "epoch": [1],
            "split": ["train", "validation", "test"],
        },
        attrs={"sweep": "fine_tuning", "images": "/photos"},
    )


def test_a_table_has_means_over_seeds_and_their_spread():
    made = answers.table(results([[0.5, 0.7], [0.8, 0.8]]))
    assert made["learning rate"].tolist() == [0.1, 0.01]
    assert made["val acc"].tolist() == pytest.approx([0.6, 0.8])
    assert made["test acc"].tolist() == pytest.approx([0.5, 0.7])
    assert made["train loss"].tolist() == pytest.approx([0.3, 0.1])
    assert made["± test acc"].tolist() == pytest.approx([0.2 / 2**0.5, 0])


def test_the_answer_names_the_best_by_validation():
    told = answers.answer(results([[0.5, 0.7], [0.8, 0.8]]))
    assert "learning rate 0.01: its test accuracy is 0.7000 ± 0" in told
    assert "(mean ± standard deviation over 2 seeds)" in told
    assert "It is the best with 2 of 2 seeds." in told


def test_a_setting_of_which_a_seed_diverged_is_never_the_best():
    diverged = np.array([[0, 0], [0, 1]])
    found = results([[0.5, 0.7], [0.8, 0.8]], diverged)
    assert "learning rate 0.1" in answers.answer(found)
    assert answers.table(found)["diverged"].tolist() == [0, 1]
    assert "diverged" in answers.answer(results([[0.5]], np.array([[1]])))


def test_a_verdict_allows_for_what_chance_explains():
    judge = answers.verdict(0.7)
    assert judge(results([[0.75, 0.83]])).agrees  # 0.69 in the test
    apart = judge(results([[0.5, 0.5]]))  # 0.4: more than two standard errors of 100 images
    assert apart.agrees is False
    assert "0.400 ± 0.000, against 0.7" in apart.reason
    assert judge(results([[0.5, 0.5]]).assign_attrs(images="")).agrees is None


def test_one_fit_has_no_setting_and_no_figure():
    one = results([[0.5]]).isel(learning_rate=0, seed=0, drop=True)
    told = answers.answer(one)
    assert told.startswith("Its test accuracy is 0.4000, its validation accuracy 0.5000")
    assert answers.draw(one) == []


def test_ties_go_to_the_lower_loss():
    found = results([[0.5], [0.5]])
    found["loss"][1] -= 0.2
    assert "learning rate 0.01" in answers.answer(found)


def test_accuracy_is_drawn_by_rate_with_every_seed():
    [figure] = answers.draw(results([[0.5, 0.7], [0.8, 0.8]]))
    labels = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert "validation, each seed" in labels
