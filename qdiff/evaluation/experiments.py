"""Several methods on one model: their command lines, carried out one after the other, and what came out."""

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
    from qdiff.evaluation.report import Section

FP = "FP"


@dataclass(frozen=True)
class Method:
    """A row of a comparison: its name, the folder of its run, and the words of its command line."""

    name: str
    folder: Path
    words: list[str]

    @property
    def command(self) -> str:
        """As one would type it."""
        return shlex.join(["python", *self.words])

    @property
    def file(self) -> Path:
        """The quantized network."""
        return self.folder / "quantized.safetensors"

    def carry_out(self) -> None:
        """Run the command, showing it. Raises UserError if it fails."""
        print(f"\n{self.name}\n  {self.command}", flush=True)
        start = time.perf_counter()
        status = subprocess.run([sys.executable, *self.words], check=False).returncode
        if status:
            raise UserError(
                f"'{self.name}' ended with status {status}; to begin afresh, give another folder with --out"
            )
        print(f"  {time.perf_counter() - start:.0f} s", flush=True)


@dataclass(frozen=True)
class Experiment:
    """A model, and the methods that are compared on it.

    Attributes:
        name: of its files.
        title: of its part of the report.
        script: what samples it.
        sampling: words that every method has.
        methods: name -> folder and further words; the first one is in full precision.
        images: pictures of each method.
        reference: statistics of its training pictures.
        categories: how many take turns among the pictures; 0 where they have none.
        shown: what the columns of its pictures show, where that does not say itself.
        folder_flag: of the script, for the folder of a run.
    """

    name: str
    title: str
    script: Path
    sampling: Sequence
    methods: dict[str, tuple[Path, Sequence]]
    images: int
    reference: Path
    categories: int = 0
    shown: Sequence[str] = ()
    folder_flag: str = "-l"

    @property
    def runs(self) -> list[Method]:
        """The methods with their command lines."""
        return [
            Method(
                name, folder, [str(word) for word in (self.script, *self.sampling, *words, self.folder_flag, folder)]
            )
            for name, (folder, words) in self.methods.items()
        ]

    def section(self, classifier: Path) -> "Section":
        """The numbers of every run; its pictures are in place. `classifier` are the weights of a `FeatureNet`."""
        import torch

        from qdiff.checkpoints.read import read_calibrated
        from qdiff.checkpoints.weights import load_weights
        from qdiff.evaluation.features import FeatureNet
        from qdiff.evaluation.metrics import frechet_distance, mean_absolute_error, psnr, statistics
        from qdiff.evaluation.report import Result, Section
        from qdiff.evaluation.statistics_file import read_statistics
        from qdiff.files.pictures import read_pictures
        from qdiff.sampling.images import image_path

        net, training = FeatureNet().eval(), read_statistics(self.reference)
        load_weights(net, classifier)
        fp32_size = read_calibrated(self.runs[-1].file).summary.fp32_bytes
        labels = torch.arange(self.images) % self.categories if self.categories else None
        results, fp = [], None
        for method in self.runs:
            pictures = read_pictures([image_path(method.folder / "img", i) for i in range(self.images)])
            fp = pictures if fp is None else fp
            small = FeatureNet.fit_size(pictures)
            results.append(
                Result(
                    method.name,
                    method.command,
                    psnr=psnr(pictures, fp),
                    mae=mean_absolute_error(pictures, fp),
                    frechet=frechet_distance(statistics(net.features(small)), training),
                    size=fp32_size if method.name == FP else method.file.stat().st_size,
                    fp32_size=fp32_size,
                    recognised=None if labels is None else net.recognised(small, labels),
                )
            )
        grids = {method.name: method.folder / "grid.png" for method in self.runs}
        title = f"{self.title}: {self.images} pictures of each method, seeds alike"
        return Section(self.name, title, results, grids, self.shown)
