"""The result of an evaluation with its protocol, what was compared with what and how: the fields of `results.json`."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ImagesRecord:
    """A set of images, or statistics of one.

    Attributes:
        source: path, or what the images came from.
        kind: "images" or "statistics".
        number: of images; None if statistics do not say it.
        shape: channels, height and width; None if statistics do not say it.
        sha256: digest of the pixels in order, in whatever files they are; of statistics that do not name their images,
            of the file.
        rounding: how images were rounded to 8 bits, "nearest" or "down"; None if it is not known.
        files: formats of the images' files, such as "PNG"; None if there are none, or it is not known.
    """

    source: str
    kind: str
    number: int | None
    shape: tuple[int, ...] | None
    sha256: str
    rounding: str | None
    files: str | None = None


@dataclass(frozen=True)
class NetworkRecord:
    """A network that metrics use.

    Attributes:
        role: "features", "clip" or "lpips".
        name: of the network.
        sha256: of its weights.
        standard: whether the metrics of papers are defined by these weights.
    """

    role: str
    name: str
    sha256: str
    standard: bool


@dataclass(frozen=True)
class SamplingRecord:
    """How the images were sampled.

    Attributes:
        sampler: with its settings, such as "DDIM(steps=20, eta=0.0)".
        steps: sampling steps; None for a sampler that visits every timestep.
        nfe: network calls per image.
        eta: noise of DDIM; None for other samplers.
        scale: guidance scale; None for a model without guidance.
        seed: image i depends on it and on i.
        bits: such as "W4A8, split", or "not quantized".
        precision: of the network's arithmetic; "full" is float32.
        weights: digest of the full-precision weights; None if it is not known.
    """

    sampler: str
    steps: int | None
    nfe: int
    eta: float | None
    scale: float | None
    seed: int
    bits: str
    precision: str
    weights: str | None = None


@dataclass(frozen=True)
class ModelRecord:
    """The model that the images were sampled with, and what its network takes.

    Attributes:
        source: file of its configuration.
        parameters: of the network that predicts the noise.
        file_bytes: size of the network's file; in full precision, of its parameters in float32; None for a quantized
            one that was not read from a file.
        step_bops: bit operations of a sampling step for one image, averaged over all steps.
        bops: of all steps for one image; see `qdiff.evaluation.bops`.
    """

    source: str
    parameters: int
    file_bytes: int | None
    step_bops: float
    bops: int

    @property
    def bits(self) -> float | None:
        """Bits that the file takes per parameter; None if its size is not known."""
        return None if self.file_bytes is None else 8 * self.file_bytes / self.parameters


@dataclass(frozen=True)
class Row:
    """A value.

    Attributes:
        metric: its key, see docs/evaluation.md.
        name: what it is called for this network and number of images.
        unit: empty for a number without one.
        value: None stands for infinity, such as the PSNR of equal images.
        by: package that computed it, with its version.
        published: the value that a paper gives for the same; None if none was given.
        meaning: one sentence without a full stop; empty if the name says it.
        spec: format of the value in a table.
    """

    metric: str
    name: str
    unit: str
    value: float | None
    by: str
    published: float | None = None
    meaning: str = ""
    spec: str = "#.4g"

    @property
    def title(self) -> str:
        """Name and unit."""
        return f"{self.name} [{self.unit}]" if self.unit else self.name

    @property
    def cell(self) -> str:
        """The value as text."""
        return "∞" if self.value is None else format(self.value, self.spec)


@dataclass(frozen=True)
class Evaluation:
    """Values of one set of images, and their protocol.

    Attributes:
        images: what was evaluated.
        reference: what distributions were compared with.
        full_precision: what each image was compared with.
        sampling: how the images were sampled; None if it is not known.
        networks: those that were used.
        rows: the values.
        left_out: metric -> why it has no value.
        notes: what a reader must know before comparing these values with others, the most important first.
        settings: package versions and the machine.
        model: what the images were sampled with; None if it is not known.
    """

    images: ImagesRecord
    reference: ImagesRecord | None
    full_precision: ImagesRecord | None
    sampling: SamplingRecord | None
    networks: tuple[NetworkRecord, ...]
    rows: tuple[Row, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    model: ModelRecord | None = None

    @property
    def values(self) -> dict[str, float]:
        """Key of a metric -> value."""
        return {row.metric: float("inf") if row.value is None else row.value for row in self.rows}

    @property
    def is_full_precision(self) -> bool:
        """Whether the images are known to be sampled in full precision."""
        return self.sampling is not None and self.sampling.bits == "not quantized"
