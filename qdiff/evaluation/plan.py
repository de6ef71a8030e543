"""The plan of an evaluation: which measures are computed, and for which others a reason is told."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from qdiff.errors import UserError
from qdiff.evaluation.image_sets import ImageSet
from qdiff.evaluation.kinds import KINDS, Inputs, chosen
from qdiff.evaluation.reference import load_reference, offers
from qdiff.evaluation.statistics_file import SetStatistics
from qdiff.files.images import Shape

MORE = "give more, or add --few, which computes it under another name"


@dataclass(frozen=True)
class Request:
    """What to compute.

    Attributes:
        metrics: names in `KINDS`; None takes all whose inputs are given.
        few: compute also what needs more images than there are, under a name that says so.
        published: key of a metric -> the value that a paper gives for these images.
        size: images per batch.
        progress: show a progress bar; None shows it in a terminal.
    """

    metrics: Sequence[str] | None = None
    few: bool = False
    published: Mapping[str, float] = field(default_factory=dict)
    size: int = 64
    progress: bool | None = False

    @property
    def hidden(self) -> bool | None:
        """`disable` of tqdm."""
        return None if self.progress is None else not self.progress


class Plan:
    """Which measures are computed, and for which others a reason is told."""

    def __init__(self, images: ImageSet, shape: Shape, inputs: Inputs, request: Request):
        self.images, self.shape, self.inputs, self.request = images, shape, inputs, request
        self.left_out: dict[str, str] = {}

    def names(self, paired: bool) -> list[str]:
        """Return the measures whose inputs are given and which the images are large and numerous enough for."""
        inputs, given = self.inputs, set()
        asked = self.request.metrics and [name for name in self.request.metrics if name in KINDS]
        if paired:
            given.add("fp")
        if inputs.reference and (asked is None or any("reference" in KINDS[name].needs for name in asked)):
            given |= {"reference", *offers(inputs.reference, inputs.network.identity)}
        if inputs.alexnet:
            given.add("lpips")
        if inputs.clip:
            given |= {"clip"} | ({"prompts"} if self.images.prompts else set())
        if "recognised" in (asked or ()) or (asked is None and "reference" in given):  # the network is there anyway
            given |= {"labels"} if self._recognisable else set()
        names, left_out = chosen(self.request.metrics, given)
        self.left_out |= left_out
        for name in names:
            if min(self.shape[1:]) < (pixels := KINDS[name].pixels):
                self._leave_out(name, f"it needs images of at least {pixels} x {pixels} pixels", "leave it out")
        return self.with_enough([name for name in names if name not in self.left_out], None)

    @property
    def _recognisable(self) -> bool:
        """Whether the feature network has categories of the names of the images' classes."""
        known = self.inputs.network.identity.categories
        return bool(known and (labels := self.images.labels) and {*labels} <= {*known})

    def reference(self, names: Sequence[str]) -> SetStatistics | None:
        """Return the reference if a measure needs it. Raises UserError if its images have another size."""
        if self.inputs.reference is None or not any("reference" in KINDS[name].needs for name in names):
            return None
        features = any("vectors" in KINDS[name].needs for name in names)
        path, network = self.inputs.reference, self.inputs.network
        found = load_reference(path, network, features=features, size=self.request.size)
        if found.images.kind == "images" and found.images.shape:
            check_shape(self.images.source, self.shape, found.images.source, found.images.shape)
        return found

    def with_enough(self, names: Sequence[str], reference: int | None) -> list[str]:
        """Return the measures for which the number of images, where it is known, and of the reference is enough."""
        for name in names:
            numbers = {self.images.source: self.images.count}
            if "reference" in KINDS[name].needs:
                numbers[str(self.inputs.reference)] = reference
            for source, number in numbers.items():
                least = self.least(name)
                if number is not None and number < least:
                    reason = f"it needs at least {least:,} images, '{source}' has {number:,}"
                    self._leave_out(name, reason, self._remedy)
        left = [name for name in names if name not in self.left_out]
        if names and not left:
            reason = self.left_out[names[0]]
            raise UserError(f"nothing can be computed; {names[0]}: {reason}: {self._remedy}")
        return left

    @property
    def _remedy(self) -> str:
        return "give more" if self.request.few else MORE

    def least(self, name: str) -> int:
        """Return the number of images that a measure needs."""
        return KINDS[name].least(lambda: self.inputs.network.identity, self.request.few)

    def _leave_out(self, name: str, reason: str, remedy: str) -> None:
        """Tell why a measure is left out. Raises UserError if it was asked for and the work has not begun."""
        if self.request.metrics is not None:
            raise UserError(f"--metrics {name}: {reason}: {remedy}")
        self.left_out.setdefault(name, reason)


def check_shape(source: str, shape: Sequence[int], other: str, theirs: Sequence[int]) -> None:
    """Check that two sets have images of one size. Raises UserError otherwise."""
    if tuple(shape[1:]) != tuple(theirs[1:]):
        sizes = [f"{width} x {height}" for _, height, width in (shape, theirs)]
        raise UserError(
            f"'{source}' has images of {sizes[0]}, '{other}' of {sizes[1]} pixels: compare images of one size"
        )
