"""The whole job: weights, activation ranges, step sizes, biases; a journal makes it resumable."""

from contextlib import nullcontext

from qdiff.calibration.data import CalibrationSet
from qdiff.calibration.measure import make_plan
from qdiff.calibration.phases import by_phase, unmixed
from qdiff.calibration.reporter import Reporter
from qdiff.calibration.settings import CalibrationSettings
from qdiff.calibration.stages import Stages
from qdiff.files.journal import Journal, temporary_journal
from qdiff.parallel import ALONE, Parallel
from qdiff.quant_model import QuantModel
from qdiff.spectrum import Spectrum
from qdiff.squant import round_layers


def calibrate(
    model: QuantModel,
    data: CalibrationSet | None,
    settings: CalibrationSettings,
    journal: Journal | None = None,
    *,
    spectrum: Spectrum | None = None,
    memory: int | None = None,
    reporter: Reporter | None = None,
    parallel: Parallel = ALONE,
) -> None:
    """Calibrate `model` in place.

    Args:
        model: rounded to nearest (or with the weights of a calibrated file), with its FP weights.
        data: inputs of the network; of every phase that its policy has, if any. None where nothing needs them: weights
            are rounded at most, and activations stay in floating point.
        settings: what to learn and for how long.
        journal: record of finished blocks, which are not learned again. Without one, what a resumed job would need is
            kept in a temporary folder and removed at the end.
        spectrum: weighs errors by what they do to the sampled image, in closed form and where biases are corrected;
            None weighs all alike.
        memory: bytes for the tensors captured of one block and the outputs of finished blocks; what exceeds them goes
            to files beside the journal. By default half of the memory that computing leaves free.
        reporter: is told of the progress.
        parallel: divides the learning among processes, each of which makes the same call; they must divide the batch
            size evenly. What is not learned, each computes for itself.

    Raises:
        UserError: a loss, or in closed form an input or output of a layer, is not finite, or a phase has no samples.
        ValueError: there are no data and something needs them; or the policy has phases, or there is a spectrum, and
            the timestep of the samples is not known; see `Adapter.timestep`.
    """
    model.eval()
    if data is None and (settings.changes_blocks or model.sites()):
        raise ValueError("ranges of activations, and whatever changes blocks, need calibration data: give `data`")
    if settings.squant:
        round_layers(model.layers().values())
    if data is None:
        return
    parts = by_phase(model, data) if model.sites() else []  # first, because learning takes long
    with nullcontext(journal) if journal else temporary_journal() as given:
        records = parallel.journal(given)
        if memory is None:
            memory = _default_memory(model, data, settings)
        Stages(model, data, settings, records, memory, reporter or Reporter(), parallel).run(parts, spectrum)


def _default_memory(model: QuantModel, data: CalibrationSet, settings: CalibrationSettings) -> int:
    if not settings.changes_blocks:
        return 0  # nothing is captured
    batch = next(unmixed(model, data)[0].batches(settings.batch_size)).to(next(model.parameters()).device)
    return make_plan(model, batch, len(data), settings, None).budget
