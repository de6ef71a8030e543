"""A finished run: its folder, from which the pipeline that sampled it is made again."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from qdiff.errors import UserError
from qdiff.evaluation.record import ModelRecord
from qdiff.evaluation.run_protocol import CONFIG, read_config
from qdiff.pipelines.model_record import model_record
from qdiff.pipelines.pipeline import Pipeline
from qdiff.pipelines.run import Run
from qdiff.pipelines.settings import Sampling
from qdiff.sampling.run_folder import changes


class FinishedRun:
    """The folder of a run, and what its images were sampled with.

    Args:
        folder: of the run.
        open_run: returns the run, of which nothing is loaded; raises UserError if it cannot be made again.
    """

    def __init__(self, folder: Path, open_run: Callable[[], Run]):
        self.folder, self._open = folder, open_run

    def __str__(self) -> str:
        return str(self.folder)

    def model(self) -> ModelRecord:
        """Describe what the run sampled with; no weights are loaded.

        Raises:
            UserError: the run cannot be made again, its quantized file is missing, or the configuration of its model
                has changed.
        """
        run = self._open()
        self._check(run, None)
        if run.quantization is None:
            return model_record(run.pipeline, None)
        result = run.quantization.result(self.folder)
        return model_record(run.pipeline, result.policy(), result.path)

    def load(self) -> Pipeline:
        """Load the pipeline that sampled the images, with the quantized network if there is one.

        Raises:
            UserError: as `model`, or the weights or another file are not those of the run.
        """
        run = self._open()
        self._check(run, run.pipeline.load(network=run.needs_weights))
        way = run.quantization
        if way is None:
            return run.pipeline
        quantized = run.pipeline.with_network(way.result(self.folder).run(run.pipeline, self.folder))
        return self._corrected(run, quantized)

    def load_full_precision(self) -> Pipeline:
        """Load the model of the run in full precision, with its sampling.

        Raises:
            UserError: as `load`.
        """
        run = self._open()
        weights = run.pipeline.load()
        self._check(run, weights if run.needs_weights else None)
        return run.pipeline

    def quantized(self, pipeline: Pipeline) -> Pipeline:
        """Return the pipeline that samples with the run's quantized network and correction; `pipeline` does not change.

        Args:
            pipeline: of the model that the run quantized.

        Raises:
            UserError: the run is in full precision, or its quantized file is missing, damaged or of another network.
        """
        run = self._open()
        way = run.quantization
        if way is None:
            raise UserError(f"'{self}' is in full precision: give a run with --ptq")
        return self._corrected(run, way.result(self.folder).applied(pipeline))

    def _corrected(self, run: Run, quantized: Pipeline) -> Pipeline:
        if run.correction is None:
            return quantized
        return run.correction.result(self.folder).run(quantized, None, self.folder)

    def sampling(self) -> Sampling:
        """Return the settings of sampling, but for the batch size. Raises UserError if the run cannot be made again."""
        return replace(self._open().pipeline.sampling, batch_size=None)

    def _check(self, run: Run, weights: Mapping[str, Tensor] | None) -> None:
        """Check a run against what its folder recorded.

        Files that are gone are not looked at: the result may not need them, as calibration data.

        Args:
            run: made again from the folder.
            weights: as the run loads them; None if they are not loaded, and their digest is not known.

        Raises:
            UserError: the model's configuration, its weights or another file have changed.
        """
        recorded, now = read_config(self.folder / CONFIG), {"config": run.pipeline.config_dict}
        gone = {name for name, path in run.record.files.items() if not path.is_file()}
        if weights is not None:
            kept = {name: path for name, path in run.record.files.items() if name not in gone}
            now["sha256"] = replace(run, record=replace(run.record, files=kept)).settings(weights)["sha256"]
        changed = changes(recorded, recorded | now, [f"sha256.{name}" for name in gone])
        if changed:
            raise UserError(f"'{self}' was made with other files: {changed}; put those back")
