"""Comparisons of several methods on one model: run their command lines one after another, and compute metrics."""

import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qdiff.errors import UserError

if TYPE_CHECKING:
    from qdiff.evaluation.results import Section

FP = "FP"


@dataclass(frozen=True)
class Method:
    """A row of a comparison: its name, the folder of its run, and the arguments of `python` that run it."""

    name: str
    folder: Path
    words: list[str]

    @property
    def command(self) -> str:
        """The command line, as typed."""
        return shlex.join(["python", *self.words])

    @property
    def file(self) -> Path:
        """Path of the quantized network."""
        return self.folder / "quantized.safetensors"

    def run(self, *, shown: bool = True) -> None:
        """Run the command, and print it and its time if they are to be shown. Raises UserError if it fails."""
        if shown:
            print(f"\n{self.name}\n  {self.command}", flush=True)
        start = time.perf_counter()
        status = subprocess.run([sys.executable, *self.words], check=False).returncode
        if status:
            raise UserError(
                f"'{self.name}' ended with status {status}: see its output above; to start afresh, give another --out"
            )
        if shown:
            print(f"  {time.perf_counter() - start:.0f} s", flush=True)


@dataclass(frozen=True)
class Experiment:
    """A comparison of methods on one model.

    Attributes:
        name: for file names.
        title: heading in the report.
        script: the sampling script.
        sampling: arguments that all methods share.
        methods: name -> folder of the run and further arguments; the first one is in full precision.
        num_images: images per method.
        reference: file with the feature statistics of the training images.
        categories: number of categories, which alternate from image to image; 0 without categories.
        shown: meanings of the overview's columns, from the left; empty if they are obvious.
        folder_flag: the script's flag for the folder of a run.
    """

    name: str
    title: str
    script: Path
    sampling: Sequence
    methods: dict[str, tuple[Path, Sequence]]
    num_images: int
    reference: Path
    categories: int = 0
    shown: Sequence[str] = ()
    folder_flag: str = "-l"

    @property
    def runs(self) -> list[Method]:
        """The methods with their complete command lines."""
        return [
            Method(
                name, folder, [str(word) for word in (self.script, *self.sampling, *words, self.folder_flag, folder)]
            )
            for name, (folder, words) in self.methods.items()
        ]

    def section(self, classifier: Path) -> "Section":
        """Compute the metrics of every run, whose images must exist.

        Args:
            classifier: file with the weights of a `FeatureNet`.

        Raises:
            UserError: an image, a quantized network, the statistics or the classifier cannot be read.
        """
        import torch

        from qdiff.checkpoints.quantized_file import read_quantized
        from qdiff.evaluation.distributions import Frechet
        from qdiff.evaluation.features import load_feature_net
        from qdiff.evaluation.measures import Batch, measured
        from qdiff.evaluation.paired import Recognised, distance_to_fp, psnr_to_fp
        from qdiff.evaluation.results import Result, Section
        from qdiff.evaluation.statistics_file import read_statistics
        from qdiff.files.images import image_path, read_images

        net = load_feature_net(classifier)
        reference = read_statistics(self.reference, net.identity).vectors
        runs = self.runs
        fp32_bytes = read_quantized(runs[-1].file).summary.fp32_bytes
        labels = torch.arange(self.num_images) % self.categories if self.categories else None
        results: list[Result] = []
        fp = None
        for method in runs:
            images = read_images([image_path(method.folder / "img", i) for i in range(self.num_images)])
            fp = images if fp is None else fp
            measures = [psnr_to_fp(), distance_to_fp(), Frechet(net, reference), Recognised(net)]
            values = measured(measures, [Batch(images, fp, labels)])
            file_bytes = fp32_bytes if method.name == FP else method.file.stat().st_size
            results.append(Result(method.name, method.command, values, file_bytes, fp32_bytes))
        grids = {method.name: method.folder / "grid.png" for method in runs}
        title = f"{self.title}: {self.num_images} images per method, same seeds"
        metrics = [metric for measure in measures for metric in measure.metrics]
        return Section(self.name, title, metrics, results, grids, self.shown)
