"""Fine-tuning (7.5): how far does a ResNet 18 get in one epoch from ImageNet's weights?

    jaxexp run fine_tuning --images DIR --image-size 64 --weights FILE.pth

As long as `scratch`: all weights are trained, the last layer from new ones.
"""

import jaxexp as jx

answers = jx.reproduce.answers


def check(inputs):
    """Read images and weights before anything is trained."""
    jx.reproduce.problems.check_pretrained(inputs)


def problem(inputs):
    """Images as the weights expect them, and the weights."""
    return jx.reproduce.problems.fine_tuning(inputs)


def predict(model, files):
    """The class of image files."""
    return jx.reproduce.predict.predict(model, files)


def export(model, path):
    """Write a model's weights for torchvision."""
    jx.reproduce.predict.export(model, path)


sweep = jx.Sweep(
    base=jx.reproduce.trials.ImageTrial(pretrained=True),
    axes={"learning_rate": [1e-1, 1e-2, 1e-3, 1e-4, 1e-5]},
    record=("predictions",),
    questions=(
        jx.Question(
            row="7.5",
            title="Fine-tuning",
            question="Which learning rate trains all weights best in one epoch, from pretrained "
            "ones?",
            draw=answers.draw,
            answer=answers.answer,
            table=answers.table,
            verdict=answers.verdict(0.775),
            reference="a validation accuracy of 0.7400 and a test accuracy of 0.7750 (loss "
            "0.6244) at a learning rate of 1e-3.",
        ),
    ),
)
