"""Which sweeps answer which section of the report, and what its page says about them."""

from dataclasses import dataclass

SOURCE = (
    '"ML Methods Ex4 Report" by Yehuda Frist, an answer to exercise 4 of the course Machine '
    "Learning Methods; section numbers are the exercise's"
)


@dataclass(frozen=True)
class ReportSection:
    """One section of the report."""

    title: str
    summary: str
    sweeps: tuple[str, ...]
    seeds: int  # for each trial, by default


SECTIONS = {
    "6": ReportSection(
        "Multi-layer perceptrons on European places",
        "Small networks learn the country of a place from its longitude and latitude.",
        (
            "learning_rate", "epochs", "batch_norm", "batch_size", "depth_width", "gradients",
            "sines",
        ),
        seeds=6,
    ),
    "7": ReportSection(
        "ResNet 18 on real and generated images",
        "Boosted trees, a ResNet 18 from scratch, linear probing and fine-tuning tell two classes "
        "of images apart.",
        ("boosted_trees", "scratch", "probing", "probing_sklearn", "fine_tuning"),
        seeds=3,
    ),
}  # fmt: skip
