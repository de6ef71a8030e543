"""Settings of pipelines: which model, how it is sampled. Frozen and validated, without tensors."""

from dataclasses import dataclass
from pathlib import Path

from diffusion.steps import Sampler

SEEDS = 2**32  # what numpy's generators take
PRECISIONS = ("full", "autocast", "bf16", "fp16")


@dataclass(frozen=True)
class PixelModel:
    """A pixel-space model.

    Args:
        config: YAML file of the model.
        weights: full-precision weights; None takes the file that the configuration names.
        published: download the published weights of this configuration instead.
        device: "auto" (cuda, else mps, else cpu), "cpu", "cuda", "cuda:N" or "mps".
    """

    config: Path
    weights: Path | None = None
    published: bool = False
    device: str = "auto"


@dataclass(frozen=True)
class LatentModel:
    """A latent model.

    Args:
        config: YAML file of the model.
        weights: full-precision weights of all parts; a plan does not need the file.
        overrides: `key=value` words that change the configuration.
        device: see `PixelModel`.
        precision: "full" (float32), "bf16", "fp16", or "autocast", the better of these on the device.
        tokenizer: folder of the tokenizer of a text-to-image model; None takes the one beside the weights or CLIP's.
        channels, factor: of latents, and pixels per latent pixel along an edge; None, or what the model must have.

    Raises:
        ValueError: unknown precision.
    """

    config: Path
    weights: Path
    overrides: tuple[str, ...] = ()
    device: str = "auto"
    precision: str = "full"
    tokenizer: Path | None = None
    channels: int | None = None
    factor: int | None = None

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, not '{self.precision}'")


@dataclass(frozen=True)
class Sampling:
    """How images are sampled.

    Args:
        sampler: with its settings.
        batch_size: images at a time, >= 1; None takes the model's default.
        seed: 0..2^32 - 1; image i depends on the seed and i, not on the batch size.

    Raises:
        ValueError: batch size or seed outside their range.
    """

    sampler: Sampler
    batch_size: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {self.batch_size}")
        if not 0 <= self.seed < SEEDS:
            raise ValueError(f"seed must be in 0..{SEEDS - 1}, not {self.seed}")


@dataclass(frozen=True)
class GuidedSampling(Sampling):
    """Sampling of latents with classifier-free guidance.

    Args:
        scale: of guidance, >= 0, in calibration and in sampling; 1 disables it.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale < 0:
            raise ValueError(f"scale must be at least 0, not {self.scale}")


@dataclass(frozen=True)
class ClassSampling(GuidedSampling):
    """Sampling of a model without conditions or with classes.

    Args:
        classes: image i gets the i-th of these, starting over after the last; None takes all but the null class.
    """

    classes: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.classes is not None:
            object.__setattr__(self, "classes", tuple(self.classes))


@dataclass(frozen=True)
class TextSampling(GuidedSampling):
    """Sampling of a text-to-image model.

    Args:
        prompts: one, or several: image i gets the i-th of these, starting over after the last.
        calibration_prompts: likewise, of calibration data; empty takes those that come with the package.
        height, width: of the images in pixels; None takes the size that the model was trained with.
        noise_period: image i starts from the noise of image i mod `noise_period`; None gives each its own.
    """

    prompts: tuple[str, ...] = ()
    calibration_prompts: tuple[str, ...] = ()
    height: int | None = None
    width: int | None = None
    noise_period: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("prompts", "calibration_prompts"):
            given = getattr(self, name)
            object.__setattr__(self, name, (given,) if isinstance(given, str) else tuple(given))
