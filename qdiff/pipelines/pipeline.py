"""A pipeline: a diffusion model with its sampler."""

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm
from typing_extensions import Self

from diffusion.checks import check_choice, whole
from diffusion.steps import Correction, Model, Noise, Sampler, Step, uncorrected
from qdiff.backends import NAMES
from qdiff.checkpoints.load import save_quantized
from qdiff.correction.file import read_correction, write_correction
from qdiff.correction.parts import PARTS
from qdiff.correction.table import CorrectionTable, StepCorrection
from qdiff.errors import UserError
from qdiff.evaluation.bops import TrajectoryBops, network_bops
from qdiff.files.images import to_uint8
from qdiff.pipelines.backends import executed
from qdiff.pipelines.base import BasePipeline, SamplingT
from qdiff.pipelines.binding import checked, made_for
from qdiff.pipelines.bits import bits_of
from qdiff.pipelines.changes import changed, like
from qdiff.pipelines.images import Images
from qdiff.pipelines.paths import as_path
from qdiff.pipelines.png_text import png_text
from qdiff.policy import QuantPolicy
from qdiff.quant_model import QuantModel
from qdiff.sampling.images import check_finite
from qdiff.sampling.noise import batch_noise

CALIBRATION_IMAGES = 10**9  # images for calibration are numbered from here, apart from all that are sampled


def replaying(model: Model, known: Sequence[Tensor]) -> Model:
    """Return the model that gives known predictions, one a call, before it computes any."""
    left = iter(known)

    def predict(x_t: Tensor, t: Tensor) -> Tensor:
        eps = next(left, None)
        return model(x_t, t) if eps is None else eps.to(x_t)

    return predict


def _calibration_streams(indices: Sequence[int]) -> list[int]:
    return [CALIBRATION_IMAGES + i for i in indices]


class Pipeline(BasePipeline[SamplingT]):
    """A diffusion model with its sampler.

    A loaded pipeline does not change: `with_sampling`, `with_network` and `with_correction` return other pipelines,
    which share the weights.
    """

    def steps(self, indices: Sequence[int], *, correct: Correction | None = None) -> Iterator[Step]:
        """Sample images one step at a time; image i does not depend on the rest of the batch.

        Args:
            indices: of the B images, each >= 0.
            correct: improves each prediction, see `diffusion.steps.Correction`; None takes the pipeline's `correction`.

        Yields:
            one `Step` per network call, whose tensors are (B, *latent_shape).
        """
        if correct is None:
            correct = StepCorrection(self.correction, self.correction.timesteps) if self.correction else uncorrected
        return self._steps(self.model_for(indices), self.noise_streams(indices), correct)

    def calibration_steps(
        self, indices: Sequence[int], correct: Correction = uncorrected, known: Sequence[Tensor] = ()
    ) -> Iterator[Step]:
        """Sample calibration images one step at a time, without the pipeline's own `correction`.

        Their noise is never that of the images of `steps`.

        Args:
            indices: of the B images, each >= 0; equal ones give equal images.
            correct: see `steps`.
            known: the first predictions, (B, *latent_shape), as an earlier call found them: the network is not called.
        """
        model = replaying(self.calibration_model_for(indices), known)
        return self._steps(model, _calibration_streams(indices), correct)

    def calibration_noise(self, indices: Sequence[int]) -> tuple[Tensor, Noise]:
        """Return x_T of calibration images and a source of their further noise; see `noise`."""
        return self.noise(_calibration_streams(indices))

    def _steps(self, model: Model, streams: Sequence[int], correct: Correction) -> Iterator[Step]:
        x_T, noise = self.noise(streams)
        return self.sampling.sampler.steps(model, x_T, self.abar, noise, correct=correct)

    def noise(self, streams: Sequence[int]) -> tuple[Tensor, Noise]:
        """Return x_T, float32 of shape (B, *latent_shape), and a source of further noise; see `batch_noise`."""
        return batch_noise(self.sampling.seed, streams, self.latent_shape, self.device)

    def with_sampling(self, sampler: Sampler | str | None = None, **changes: Any) -> Self:
        """Return a pipeline with other settings of sampling; this one does not change.

        Args:
            sampler: a sampler, or its name; by name, it keeps the settings that it shares with the current one.
            changes: settings of the sampler, such as `steps` and `eta`, or of `sampling`, such as `seed`.

        Raises:
            TypeError: an unknown setting, or a value of another type.
            ValueError: a value outside its range.
            UserError: a value that this model cannot be sampled with.
        """
        other = copy.copy(self)
        other._configure(changed(self.sampling, self._sampler(sampler), changes))
        if self.correction:
            belongs = made_for(other, known=self.correction.made_for["network"])
            checked(self.correction, belongs, other, "the correction of this pipeline", interpolate=False)
        return other

    def with_correction(self, correction: CorrectionTable | str | Path | None, *, interpolate: bool = False) -> Self:
        """Return a pipeline that corrects the predictions of its quantized network; this one does not change.

        Args:
            correction: a table or a file of `qdiff.correct`; None corrects nothing.
            interpolate: take one that was fitted for other steps of the same sampler, interpolated over log-SNR.

        Raises:
            TypeError: `correction` is neither.
            ValueError: the network is in full precision.
            UserError: the file is missing or damaged, or the correction was fitted for another network or sampling.
        """
        other = copy.copy(self)
        if correction is None:
            other.correction = None
            return other
        if not isinstance(self.network, QuantModel):
            raise ValueError("the network is in full precision, nothing to correct: call qdiff.quantize first")
        if isinstance(correction, CorrectionTable):
            table, name = correction, "the correction"
        else:
            file = as_path("correction", correction)
            table, name = read_correction(file), f"'{file}'"
        other.correction = checked(table, made_for(self), self, name, interpolate)
        return other

    def with_backend(self, backend: str) -> Self:
        """Return a pipeline whose quantized network is computed with integers; this one does not change.

        Args:
            backend: "torch", "onnxruntime", "openvino", or "auto" for the fastest of them that this machine has; see
                docs/deploy.md.

        Raises:
            ValueError: the network is in full precision, a backend executes it already, or the name is unknown.
            UserError: the backend is not installed, or cannot execute this network on this machine.
        """
        check_choice("backend", backend, NAMES)
        if not isinstance(self.network, QuantModel):
            raise ValueError("the network is in full precision: call qdiff.quantize first")
        self._check_values()
        own = self.with_network(copy.deepcopy(self.network))
        own.correction = self.correction
        return executed(own, backend)

    def correction_report(self) -> list[str]:
        """Return lines about the correction and its parts; none if there is no correction."""
        c = self.correction
        return [f"correction, {c.fit} fit:", *(f"  {name:9} {c.parts[name]}" for name in PARTS)] if c else []

    def save_correction(self, path: str | Path) -> None:
        """Write the pipeline's correction to a file, whole or not at all, for `with_correction`.

        Raises:
            TypeError: `path` is not a path.
            ValueError: there is no correction.
            UserError: the file cannot be written.
        """
        if self.correction is None:
            raise ValueError("there is no correction to save: call qdiff.correct first")
        write_correction(as_path("path", path), self.correction)

    def _sampler(self, sampler: Sampler | str | None) -> Sampler:
        if not isinstance(sampler, str):
            return self.sampling.sampler if sampler is None else sampler
        if sampler not in self.samplers:
            raise ValueError(f"unknown sampler '{sampler}': use {', '.join(self.samplers)}")
        return like(self.sampling.sampler, self.samplers[sampler], self.nfe)

    def _configure(self, sampling: SamplingT) -> None:
        """Adopt settings of sampling. Raises UserError for those that do not fit the model."""
        self.sampling = sampling
        try:
            self.nfe = sampling.sampler.nfe(len(self.abar))
        except ValueError as error:
            steps = getattr(sampling.sampler, "num_steps", None)
            raise UserError(f"{self.steps_flag} {steps}: {error}") from None

    def __str__(self) -> str:
        """Name the sampler and its settings."""
        return f"{self.sampling.sampler}, {self.nfe} network calls"

    def __repr__(self) -> str:
        """Name the model, the sampler, the bits and the device."""
        return f"<{type(self).__name__} {self.source}: {self}, {bits_of(self.network)}, on {self.device}>"

    def remarks(self) -> list[str]:
        """Return notes about numbers that differ from the requested ones by design, for the console and the log."""
        asked = getattr(self.sampling.sampler, "num_steps", self.nfe)
        return [f"{self.steps_flag} {asked}: {self.nfe} network calls per image, not {asked}"] * (asked != self.nfe)

    def sample(self, count: int, *, progress: bool = False, **changes: Any) -> Images:
        """Sample images.

        Args:
            count: number of images, >= 1.
            progress: show a progress bar.
            changes: settings of sampling for this call, such as `seed=0` or `steps=20`; see `with_sampling`.

        Returns:
            the images 0..count - 1; image i depends only on the seed and on i, up to rounding of the network's
            arithmetic.

        Raises:
            TypeError: `count` is not a whole number, or as `with_sampling`.
            ValueError: `count` is less than 1, the network has no weights, or as `with_sampling`.
            UserError: an image is not finite, or as `with_sampling`.
        """
        if changes:
            return self.with_sampling(**changes).sample(count, progress=progress)
        return Images(torch.cat(list(self.batches(count, progress=progress))), png_text(self, [0]))

    def batches(self, count: int, *, progress: bool = False) -> Iterator[Tensor]:
        """Sample images a batch at a time, for uses that need not have all of them in memory or in files.

        Args:
            count: number of images, >= 1.
            progress: show a progress bar.

        Yields:
            the images 0..count - 1 in order, uint8 of shape (B, 1 or 3, H, W) on the CPU, as `sample` returns them.

        Raises:
            TypeError, ValueError, UserError: as `sample`; the first two before anything is sampled.
        """
        count = whole("count", count, 1)
        self.check_loaded()
        return self._batches(count, progress)

    def _batches(self, count: int, progress: bool) -> Iterator[Tensor]:
        with tqdm(total=count * self.nfe, unit="call", desc="sampling", disable=not progress) as bar:
            for batch in torch.arange(count).split(self.batch_size):
                yield to_uint8(self._sampled(batch.tolist(), bar))

    def _sampled(self, indices: Sequence[int], bar: tqdm) -> Tensor:
        """Return finished images (B, C, H, W), about -1..1."""
        for step in self.steps(indices):
            x = step.x_prev
            bar.update(len(indices))
        images = self.decode(x)
        check_finite(images, indices)
        return images

    def bops(self) -> TrajectoryBops:
        """Count the network's bit operations for one image, without computing it.

        Conditioners and the decoding of latents are not counted. The network needs no weights.
        """
        network = self.network
        policy = network.policy if isinstance(network, QuantModel) else QuantPolicy()
        phases = tuple(map(policy.phase_of, self.timesteps))
        return TrajectoryBops(network_bops(network, self.shapes()), phases, self.cfg_copies)

    def check_loaded(self) -> None:
        """Check that the network has weights. Raises ValueError if they are on the meta device."""
        if self.device.type != "meta" and any(x.is_meta for x in self.called.parameters()):
            raise ValueError("the network has no weights, they are on the meta device: call load() first")

    def _check_values(self) -> None:
        if self.execution:
            raise ValueError(f"the network is executed by '{self.execution.backend}': use the pipeline that it is from")

    def save(self, path: str | Path) -> None:
        """Write the quantized network to one file, whole or not at all; `load_pipeline(..., quantized=path)` reads it.

        Args:
            path: its folder is created if missing; a file there is replaced.

        Raises:
            TypeError: `path` is not a path.
            ValueError: the network is in full precision, or a backend executes it.
            UserError: the file cannot be written.
        """
        file = as_path("path", path)
        if not isinstance(self.network, QuantModel):
            raise ValueError("the network is in full precision, nothing to save: call qdiff.quantize first")
        self._check_values()
        save_quantized(file, self.network, config=self.config_dict, provenance=self.network.provenance)
