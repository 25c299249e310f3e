"""From scratch (7.2): what does a ResNet 18 learn in one epoch, at which rate?

    jaxexp run scratch --images DIR --image-size 64

Some seconds per learning rate on 4 cores for 800 images of 64 pixels, some minutes at 224.
"""

import jaxexp as jx

answers = jx.reproduce.answers


def check(inputs):
    """Read the images before anything is trained."""
    jx.reproduce.images.load(inputs, jx.reproduce.images.stretched(inputs.image_size))


def problem(inputs):
    """Images scaled to [0, 1]."""
    return jx.reproduce.problems.scratch(inputs)


def predict(model, files):
    """The class of image files."""
    return jx.reproduce.predict.predict(model, files)


def export(model, path):
    """Write a model's weights for torchvision."""
    jx.reproduce.predict.export(model, path)


sweep = jx.Sweep(
    base=jx.reproduce.trials.ImageTrial(),
    axes={"learning_rate": [1e-1, 1e-2, 1e-3, 1e-4, 1e-5]},
    record=("predictions",),
    questions=(
        jx.Question(
            row="7.2",
            title="ResNet 18 from scratch",
            question="Which learning rate trains all weights best in one epoch, from random ones?",
            draw=answers.draw,
            answer=answers.answer,
            table=answers.table,
            verdict=answers.verdict(0.5225),
            reference="a validation accuracy of 0.5250 and a test accuracy of 0.5225 (loss "
            "0.7758) at a learning rate of 1e-2.",
        ),
    ),
)
