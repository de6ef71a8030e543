"""Finds the range of every activation on calibration data."""

from collections.abc import Sequence

from qdiff.calibration.data import CalibrationSet
from qdiff.calibration.settings import CalibrationSettings
from qdiff.errors import UserError
from qdiff.files.journal import Journal
from qdiff.observers import Observer, RunningObserver
from qdiff.quant_block import ActSite
from qdiff.quant_model import QuantModel

UNIT = "ranges"  # in the journal, and of the draws


def find_ranges(
    model: QuantModel, phases: Sequence[CalibrationSet], settings: CalibrationSettings, journal: Journal
) -> None:
    """Find the range of every activation, in the order of the network, or take them from the journal.

    Args:
        model: gets the quantizers of its activations.
        phases: the samples of each phase of its policy.
        settings: how many samples, and which kind of search.
        journal: record of the ranges.

    Raises:
        UserError: an activation is not finite.
    """
    sites, device = model.sites(), next(model.parameters()).device
    found = journal.read(UNIT)
    if found:
        for site in sites:
            site.restore(found[0], device)
        return
    running = [site for site in sites if settings.running_stat and (site.is_softmax or not settings.rs_sm_only)]
    if len(running) < len(sites):
        _observe(model, sites, Observer, phases, settings, settings.range_samples, settings.range_samples)
    # In random order, because running averages would otherwise forget all but the last timesteps.
    samples = sum(map(len, phases))
    _observe(model, running, RunningObserver, phases, settings, samples, settings.batch_size)
    names = tuple(f"{site.path}.{site.name}." for site in sites)
    journal.write(UNIT, {key: x for key, x in model.state_dict().items() if key.startswith(names)})


def _observe(
    model: QuantModel,
    sites: list[ActSite],
    observer: type[Observer],
    phases: Sequence[CalibrationSet],
    settings: CalibrationSettings,
    samples: int,
    batch_size: int,
) -> None:
    """Find the ranges of some activations with an observer, on that many samples of each phase."""
    if not sites:
        return
    device = next(model.parameters()).device
    try:
        with model.observing(observer, sites):
            for phase in phases:
                for inputs in phase.drawn(samples, settings.generator(UNIT), batch_size):
                    inputs.to(device)(model)
    except ValueError as error:
        raise UserError(
            f"cannot find the ranges of the activations ({error}): check the weights and --cali_data_path for "
            "values that overflow"
        ) from error
