"""Boosted trees (7.1): how far do flat pixels go?

    jaxexp run boosted_trees --images DIR

About half a minute on 4 cores for 2,000 images: one fit, with XGBoost's defaults.
"""

import jaxexp as jx

answers = jx.reproduce.answers


def check(inputs):
    """Read the images before anything is trained."""
    jx.reproduce.images.load(inputs, jx.reproduce.images.middle())


def estimate(sweep, inputs):
    """Fit XGBoost."""
    return jx.reproduce.estimators.boosted_trees(sweep, inputs)


sweep = jx.Sweep(
    base=jx.reproduce.trials.EstimatorTrial(),
    record=("predictions",),
    questions=(
        jx.Question(
            row="7.1",
            title="XGBoost",
            question="How well do boosted trees tell the two classes apart, from the pixels of the "
            "middle of each image (resized to 224, 64 × 64 of them) and with their defaults?",
            draw=answers.draw,
            answer=answers.answer,
            table=answers.table,
            verdict=answers.verdict(0.735),
            reference="a test accuracy of 0.735.",
        ),
    ),
)
