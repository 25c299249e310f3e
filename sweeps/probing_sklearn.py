"""Linear probing by scikit-learn (7.4): the same features, fitted until nothing changes any more.

    jaxexp run probing_sklearn --images DIR --weights FILE.pth

One fit of `LogisticRegression()`, in about a second beyond the features.
"""

import jaxexp as jx

answers = jx.reproduce.answers


def check(inputs):
    """Read images and weights before anything is trained."""
    jx.reproduce.problems.check_pretrained(inputs)


def estimate(sweep, inputs):
    """Fit scikit-learn's logistic regression."""
    return jx.reproduce.estimators.logistic_regression(sweep, inputs)


sweep = jx.Sweep(
    base=jx.reproduce.trials.EstimatorTrial(),
    record=("predictions",),
    questions=(
        jx.Question(
            row="7.4",
            title="Linear probing by scikit-learn",
            question="How well does scikit-learn's logistic regression, with its defaults, tell "
            "the classes apart from the same features?",
            draw=answers.draw,
            answer=answers.answer,
            table=answers.table,
            verdict=answers.verdict(0.73),
            reference="accuracies of 0.7557 in training, 0.7550 in validation and 0.7300 in test.",
        ),
    ),
)
