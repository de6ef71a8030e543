"""`scripts/sample_diffusion_ddim.py`: sample a pixel-space model, in full precision or quantized."""

from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from tqdm import tqdm

from qdiff.adapters.ddim_sampling import PixelSampler, schedule
from qdiff.calibration_data import CalibrationSet, kept_steps
from qdiff.checkpoint import load_weights
from qdiff.cli.config import build_network, load_config
from qdiff.cli.device import find_device
from qdiff.cli.quantize import Quantization, file_digest, memory_budget, weights_digest
from qdiff.collecting import collect
from qdiff.errors import UserError
from qdiff.files.download import fetch, name_for
from qdiff.journal import Journal
from qdiff.measuring import forward_seconds
from qdiff.planning import clock
from qdiff.run_folder import RunFolder
from qdiff.sampling import batch_noise, frame_writer, image_path, sample_images, write_grid

GRID_IMAGES = 64
MEASURED = 1  # images in the forward that a dry run measures; a batch takes time in proportion
CALIBRATION_IMAGES = 10**9  # numbers of the images that calibration data come from: none that is ever sampled

# Flags that change no image, so that a run may be continued with others.
FREE = ("batch_size", "max_images", "device", "verbose", "dry_run", "cali_memory", "logdir")


class DDIMRun:
    """One run of the script.

    Args:
        args: the flags.
        config: the model's configuration.
    """

    def __init__(self, args: Namespace, config: DictConfig):
        self.args, self.config = args, config
        self.device = find_device(args.device)
        self.batch_size = args.batch_size or config.sampling.batch_size
        self.sampler = PixelSampler(
            config.diffusion,
            args.sample_type,
            args.timesteps,
            args.skip_type,
            args.eta,
            args.dpm_order,
            args.dpm_method,
        )
        try:
            schedule(config.diffusion)
        except ValueError as error:
            raise UserError(f"{args.config}, section 'diffusion': {error}") from None
        try:
            self.sampler_calls = len(self.sampler)
        except ValueError as error:
            raise UserError(f"--timesteps {args.timesteps}: {error}") from None
        self.shape = (config.data.channels, config.data.image_size, config.data.image_size)
        self.model = build_network(config, args.config).eval().to(self.device)

    def weights_file(self) -> Path:
        """The full-precision weights that the flags name; published ones are downloaded."""
        if self.args.ckpt:
            return self.args.ckpt
        if self.args.use_pretrained:
            return fetch(name_for(self.config))
        bundled = self.config.model.get("weights")
        if bundled is None:
            raise UserError(f"no weights: give --ckpt FILE or --use_pretrained ({self.args.config} names none)")
        return self.args.config.parent / bundled

    def steps(self, model: nn.Module, images: Sequence[int]) -> Iterator:
        """The sampling steps of these images."""
        x_T, noise = batch_noise(self.args.seed, images, self.shape, self.device)
        return self.sampler.steps(model, x_T, noise)

    def collect(self, journal: Journal) -> CalibrationSet:
        """Calibration data from the trajectory of the network in full precision; see `calibration_data.collect`."""
        a, calls = self.args, self.sampler_calls
        total = a.cali_n * (kept_steps(calls, a.cali_st)[-1] + 1)
        with tqdm(total=total, unit="step", desc="collecting calibration data", disable=None) as bar:
            return collect(
                self.model,
                lambda images: self.steps(self.model, [CALIBRATION_IMAGES + i for i in images]),
                calls,
                a.cali_st,
                a.cali_n,
                self.batch_size,
                journal,
                bar.update,
            )

    def example(self, batch_size: int) -> tuple[Tensor, Tensor]:
        """Inputs of the network: noise at its first timestep."""
        x, _ = batch_noise(self.args.seed, range(batch_size), self.shape, self.device)
        return x, torch.full((batch_size,), self.config.diffusion.num_diffusion_timesteps - 1, device=self.device)

    def quantization(self, folder: Path, batch_size: int) -> Quantization:
        """The `--ptq` part of the run; its time is estimated with a batch of this size."""
        config = OmegaConf.to_container(self.config)
        return Quantization(self.args, self.model, config, folder, self.collect, self.example(batch_size))

    def settings(self) -> dict:
        """Everything that decides what the images are."""
        flags = {name: value for name, value in vars(self.args).items() if name not in FREE}
        free = {name: vars(self.args)[name] for name in FREE}
        model = OmegaConf.to_container(self.config)
        files = {
            name: file_digest(path) for name in ("cali_ckpt", "cali_data_path") if (path := getattr(self.args, name))
        }
        return {
            "flags": flags,
            "free": free,
            "config": model,
            "sha256": files if self.args.resume else {"weights": weights_digest(self.model), **files},
        }

    def sample(self, model: nn.Module, folder: RunFolder) -> None:
        """Make the images that the folder lacks, and the grid."""

        def draw(images: Sequence[int]) -> Iterator[Tensor]:
            return (step.x_prev for step in self.steps(model, images))

        watch = {"watch": frame_writer(folder.path / "sequence")} if self.args.sequence else {}
        wanted = range(self.args.max_images)
        sample_images(draw, wanted, folder.images, self.batch_size, **watch)
        first = [image_path(folder.images, i) for i in wanted[:GRID_IMAGES]]
        write_grid(first, folder.grid)
        print(f"{len(wanted)} images in {folder.images}, the first ones in {folder.grid}")

    def dry_run(self) -> None:
        """Print what would be done; needs no weights and writes nothing."""
        a = self.args
        print(f"network: {a.config}, {sum(p.numel() for p in self.model.parameters()):,} parameters on {self.device}")
        quantization = self.quantization(a.logdir, MEASURED)
        plan = quantization.plan() if a.ptq else None
        if a.resume or a.resume_w:
            print(f"calibrated weights: {a.cali_ckpt}")
        if plan:
            source = a.cali_data_path or f"{a.cali_n} images sampled with {self.sampler_calls} steps"
            print(f"calibration data: {source}\n{plan.table(memory_budget(a))}")
        seconds = forward_seconds(self.model, self.example(MEASURED)) / MEASURED * self.sampler_calls * a.max_images
        print(f"sampling: {a.max_images} images, {self.sampler_calls} steps, about {clock(seconds)}, to {a.logdir}")


def sample(args: Namespace) -> None:
    """Run the script with its flags. Raises UserError for whatever the user can mend."""
    run = DDIMRun(args, load_config(args.config))
    if args.dry_run:
        return run.dry_run()
    with RunFolder.open(args.logdir, verbose=args.verbose) as folder:
        if not args.resume:  # a calibrated file holds every number that is needed
            load_weights(run.model, run.weights_file())
        folder.settle(run.settings(), free=[f"free.{name}" for name in FREE])
        model = run.quantization(folder.path, args.cali_batch_size).run() if args.ptq else run.model
        run.sample(model, folder)
