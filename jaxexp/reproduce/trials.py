"""Trials of models that see images; the defaults are the report's."""

from dataclasses import dataclass

from jaxexp.base.errors import UserError
from jaxexp.spec.trial import Cost, Trial, hyperparameter

FEATURES = 512  # of ResNet 18, after its last pooling
SMALLEST_IMAGE = 16  # pixels: the last stage of a ResNet sees one of them then


@dataclass(frozen=True, kw_only=True)
class ImageTrial(Trial):
    """One training run of all weights of a ResNet 18 with one logit.

    `image_size` is that of the problem's images: it decides the cost. A `pretrained` network
    starts from the problem's weights, its last layer drawn anew.
    """

    epochs: int = hyperparameter(1, kind="length", at_least=1)
    batch_size: int = hyperparameter(32, kind="size", at_least=1)
    image_size: int = hyperparameter(224, at_least=SMALLEST_IMAGE, at_most=2048)
    pretrained: bool = hyperparameter(False)

    def cost(self) -> Cost:
        """Of a ResNet 18 (He et al., 2016: 1.8e9 multiplications at 224 pixels)."""
        area = (self.image_size / 224) ** 2
        return Cost(
            multiplications=1.8e9 * area,
            launches=60 * 8,  # layers of convolution or batch norm
            parameters=11_200_000,
            activations=int(7.5e6 * area),  # three for each of the 2.5e6 outputs of a convolution
            compilation=6.0,
        )

    def check(self) -> None:
        """Raise UserError unless every value lies in its range and the values fit together."""
        super().check()
        if self.batch_size == 1:
            raise UserError("batch_size=1: batch norm needs at least 2 examples in a batch")


@dataclass(frozen=True, kw_only=True)
class ProbeTrial(Trial):
    """One training run of a linear unit on the features of a frozen network."""

    epochs: int = hyperparameter(1, kind="length", at_least=1)
    batch_size: int = hyperparameter(32, kind="size", at_least=1)

    def cost(self) -> Cost:
        """Of one unit with 512 inputs."""
        return Cost(
            multiplications=FEATURES,
            launches=8,
            parameters=FEATURES + 1,
            activations=FEATURES + 2,
        )


@dataclass(frozen=True, kw_only=True)
class EstimatorTrial(Trial):
    """One fit of another library's model with that library's defaults.

    Nothing of it is drawn, so that trials of all seeds are one fit.
    """

    epochs: int = hyperparameter(1, kind="length", at_least=1)

    def check(self) -> None:
        """Raise UserError for a hyperparameter that such a model does not have."""
        super().check()
        for name, field in self.fields().items():
            value = getattr(self, name)
            if name != "seed" and value != field.default:
                raise UserError(
                    f"{name}={value}: this model is fitted with its library's defaults; "
                    "only seed can be set, and changes nothing"
                )
