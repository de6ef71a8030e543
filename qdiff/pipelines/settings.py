"""Settings of pipelines: which model, and how it is sampled. Frozen and validated, without tensors."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from diffusion.checks import check_choice, check_number, whole
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
        channels, factor: expected channels of a latent, and image pixels per latent pixel along an edge; None accepts
            those of the model.

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
        check_choice("precision", self.precision, PRECISIONS)


@dataclass(frozen=True)
class Sampling:
    """Settings of sampling.

    Args:
        sampler: the sampler, which carries its own settings.
        batch_size: images per batch, >= 1; None takes the model's default.
        seed: 0..2^32 - 1; image i depends on the seed and on i, not on the batch size.

    Raises:
        TypeError, ValueError: a setting of another type, or outside its range.
    """

    sampler: Sampler
    batch_size: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch_size is not None:
            object.__setattr__(self, "batch_size", whole("batch_size", self.batch_size, 1))
        object.__setattr__(self, "seed", whole("seed", self.seed, 0, SEEDS - 1))


@dataclass(frozen=True)
class GuidedSampling(Sampling):
    """Settings of sampling with classifier-free guidance.

    Args:
        scale: guidance scale, >= 0, in calibration and in sampling; 1 disables guidance.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("scale", self.scale, 0)


@dataclass(frozen=True)
class ClassSampling(GuidedSampling):
    """Settings of sampling an unconditional or class-conditional model.

    Args:
        classes: one or several class indices; image i gets the i-th, starting over after the last. None takes all but
            the null class.
    """

    classes: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.classes is None:
            return
        given = self.classes if isinstance(self.classes, Iterable) else (self.classes,)
        classes = tuple(whole("classes", i, 0) for i in given)
        if not classes:
            raise ValueError("classes must have at least one, or be None for all")
        object.__setattr__(self, "classes", classes)


@dataclass(frozen=True)
class TextSampling(GuidedSampling):
    """Settings of sampling a text-to-image model.

    Args:
        prompts: one or several; image i gets the i-th, starting over after the last.
        calibration_prompts: likewise for calibration data; if empty, those that come with the package.
        height, width: of the images, pixels; None takes the size that the model was trained with.
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
            object.__setattr__(self, name, _texts(name, getattr(self, name)))
        for name in ("height", "width", "noise_period"):
            if (given := getattr(self, name)) is not None:
                object.__setattr__(self, name, whole(name, given, 1))


def _texts(name: str, given: object) -> tuple[str, ...]:
    texts = (given,) if isinstance(given, str) or not isinstance(given, Iterable) else tuple(given)
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"{name} must be one text or several, not {text!r}")
    return texts
