"""Trials of models that see images; the defaults are the report's."""

from dataclasses import dataclass

import jaxexp as jx

SMALLEST_IMAGE = 16  # pixels a side: the last stage of a ResNet then sees a single one


@dataclass(frozen=True, kw_only=True)
class ImageTrial(jx.Trial):
    """One training run of all weights of a ResNet 18 with one logit.

    `image_size` is that of the problem's images, which decides the cost. A `pretrained` network
    starts from the problem's weights, except for a newly drawn last layer.
    """

    epochs: int = 1
    batch_size: int = 32
    image_size: int = jx.static(224, at_least=SMALLEST_IMAGE, at_most=2048)
    pretrained: bool = jx.static(False)

    def check(self) -> None:
        """Raise UserError unless every value lies in its range and the values fit together."""
        super().check()
        if self.batch_size == 1:
            raise jx.UserError("batch_size=1: batch norm needs at least 2 examples in a batch")


@dataclass(frozen=True, kw_only=True)
class ProbeTrial(jx.Trial):
    """One training run of a linear unit on the features of a frozen network."""

    epochs: int = 1
    batch_size: int = 32


@dataclass(frozen=True, kw_only=True)
class EstimatorTrial(jx.Trial):
    """One fit of another library's model with that library's defaults.

    Nothing in it is random, so that one fit serves the trials of all seeds.
    """

    epochs: int = 1

    def check(self) -> None:
        """Raise UserError for a hyperparameter that such a model does not have."""
        super().check()
        for name, field in self.fields().items():
            value = getattr(self, name)
            if name != "seed" and value != field.default:
                raise jx.UserError(
                    f"{name}={value}: this model is fitted with its library's defaults; "
                    "only seed can be set, and changes nothing"
                )
