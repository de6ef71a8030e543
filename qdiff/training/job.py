"""Description of one training run."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TrainingJob:
    """Files and settings of a training run.

    Attributes:
        config: YAML file of the model and of its training.
        data: archive of images, see `qdiff.training.images.ImageDataset`.
        run: folder of checkpoints and logs; a run that was interrupted resumes from it.
        out: what is written at the end.
        init: weights to start from; None for random ones.
        seed: of weights, order of images and noise, >= 0.
        devices: GPUs, or CPU processes, that share a batch, >= 1.
    """

    config: Path
    data: Path
    run: Path
    out: Path
    init: Path | None = None
    seed: int = 0
    devices: int = 1
