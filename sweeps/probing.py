"""Linear probing (7.3): what can one linear unit read off the features of a frozen ResNet 18?

    jaxexp run probing --images DIR --weights FILE.pth --set seed=0,1,2,3

The network runs once over all images; the units, of all rates and seeds, train as one batch in
about a second.
"""

import jaxexp as jx

answers = jx.reproduce.answers


def check(inputs):
    """Read images and weights before anything is trained."""
    jx.reproduce.problems.check_pretrained(inputs)


def problem(inputs):
    """The features of the images."""
    return jx.reproduce.problems.probing(inputs)


sweep = jx.Sweep(
    base=jx.reproduce.trials.ProbeTrial(),
    axes={"learning_rate": [1e-1, 1e-2, 1e-3, 1e-4, 1e-5]},
    record=("predictions",),
    questions=(
        jx.Question(
            row="7.3",
            title="Linear probing",
            question="Which learning rate trains one linear unit best in one epoch, on the "
            "features of a frozen, pretrained ResNet 18?",
            draw=answers.draw,
            answer=answers.answer,
            table=answers.table,
            verdict=answers.verdict(0.725),
            reference="a validation accuracy of 0.6950 and a test accuracy of 0.7250 (loss "
            "0.6795) at a learning rate of 1e-2.",
        ),
    ),
)
