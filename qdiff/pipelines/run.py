"""What every script does with its pipeline: plan, load, quantize, sample; and go on where it stopped."""

import logging
from pathlib import Path

from omegaconf import OmegaConf
from torch import Tensor
from tqdm import tqdm

from qdiff.calibration.collect import collect
from qdiff.calibration.data import CalibrationSet
from qdiff.calibration.kept_steps import kept_steps
from qdiff.calibration.measure import forward_seconds
from qdiff.calibration.plan import format_duration
from qdiff.calls import Call
from qdiff.files.journal import Journal
from qdiff.pipelines.pipeline import Pipeline
from qdiff.pipelines.quantization import Quantization, digest, file_digest
from qdiff.sampling.images import image_path, missing_images, sample_images
from qdiff.sampling.run_folder import RunFolder

MEASURED = 1  # pictures in the forward that a dry run measures; a batch takes time in proportion

# Flags with which a run may be continued: they change no picture, or what they name is recorded itself.
FILES = ("cali_ckpt", "cali_data_path")
FREE = (*FILES, "device", "verbose", "dry_run", "cali_memory", "low_memory", "logdir", "cond")

log = logging.getLogger(__name__)


class Run:
    """One run of a script.

    Args:
        pipeline: what it samples.

    Raises:
        UserError: fewer sampling steps than calibration data are to be taken at.
    """

    def __init__(self, pipeline: Pipeline):
        self.pipeline, self.args = pipeline, pipeline.args
        if self.collects:
            kept_steps(pipeline.calls, self.args.cali_st)

    @property
    def collects(self) -> bool:
        """Whether calibration data come from the model's own sampling."""
        return self.args.ptq and not self.args.resume and self.args.cali_data_path is None

    @property
    def free(self) -> tuple[str, ...]:
        """Flags with which a run may be continued."""
        return (*FREE, *self.pipeline.free, *self.pipeline.files)

    def collect(self, journal: Journal) -> CalibrationSet:
        """Calibration data from the trajectory of the network in full precision; see `collecting.collect`."""
        a, p = self.args, self.pipeline
        total = a.cali_n * (kept_steps(p.calls, a.cali_st)[-1] + 1)
        with tqdm(total=total, unit="step", desc="collecting calibration data", disable=None) as bar:
            return collect(
                p.network, p.calibration_steps, p.calls, a.cali_st, a.cali_n, p.batch_size, journal, bar.update, p.rows
            )

    def quantization(self, folder: Path, batch_size: int) -> Quantization:
        """The `--ptq` part of the run; its time is estimated with a batch of this size."""
        p = self.pipeline
        config = OmegaConf.to_container(p.config)
        return Quantization(self.args, p.network, config, folder, self.collect, p.example(batch_size), p.rows)

    def settings(self, weights: dict[str, Tensor]) -> dict:
        """Everything that decides what the pictures are; `weights` are those that were loaded."""
        given = vars(self.args)
        files = {name: file_digest(path) for name in (*FILES, *self.pipeline.files) if (path := given[name])}
        return {
            "flags": {name: value for name, value in given.items() if name not in self.free},
            "free": {name: given[name] for name in self.free},
            "config": OmegaConf.to_container(self.pipeline.config),
            "sha256": ({"weights": digest(weights)} if weights else {}) | files | self.pipeline.digests(),
        }

    def announce(self) -> None:
        """Say on the console and in the log what differs from the flags."""
        for line in self.pipeline.remarks():
            print(line, flush=True)
            log.info(line)
        for line in self.pipeline.warnings(self.collects):
            log.warning(line)

    def sample(self, folder: RunFolder) -> None:
        """Make the pictures that the folder lacks, the overview, and what else the pipeline leaves."""
        p, wanted = self.pipeline, range(self.pipeline.images)
        if p.finished(folder):
            return print(f"finished before: {folder.grid}")
        sample_images(
            lambda images: (step.x_prev for step in p.steps(images)),
            wanted,
            folder.images,
            p.image_shape,
            p.batch_size,
            decode=p.decode,
            metadata=p.metadata,
            **p.watch(folder.path),
        )
        where = p.finish([image_path(folder.images, i) for i in wanted], folder)
        return print(f"{len(wanted)} images {where}")

    def dry_run(self) -> None:
        """Print what would be done; needs no weights and writes nothing."""
        a, p = self.args, self.pipeline
        p.draw()
        print(f"network: {p.source}, {sum(x.numel() for x in p.network.parameters()):,} parameters on {p.device}")
        quantization = self.quantization(a.logdir, MEASURED)
        plan = quantization.plan() if a.ptq else None
        if a.resume or a.resume_w:
            print(f"calibrated weights: {a.cali_ckpt}")
        if plan:
            source = a.cali_data_path or f"{a.cali_n} images sampled with {p.calls} steps"
            print(f"calibration data: {source}\n{plan.table()}")
        for line in [*p.remarks(), *p.warnings(self.collects)]:
            print(line)
        each = forward_seconds(p.network, Call(p.example(MEASURED))) / MEASURED * p.rows
        duration = format_duration(each * p.calls * p.images)
        print(f"sampling: {p.images} images, {p.calls} steps, about {duration}, to {a.logdir}")


def carry_out(pipeline: Pipeline) -> None:
    """Do what the flags say. Raises UserError for whatever the user can mend."""
    run, args = Run(pipeline), pipeline.args
    if args.dry_run:
        return run.dry_run()
    with RunFolder.open(args.logdir, flag=pipeline.folder_flag, verbose=args.verbose) as folder:
        settings = run.settings(pipeline.load())
        folder.settle(settings, free=[f"free.{name}" for name in run.free])
        run.announce()
        if args.ptq:
            missing_images(range(pipeline.images), folder.images, pipeline.image_shape)  # refuses a foreign one now
            run.quantization(folder.path, args.cali_batch_size).run()
        run.sample(folder)
