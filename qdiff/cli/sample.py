"""Shared by the sampling scripts: turn flags into settings, and into one run."""

from argparse import Namespace
from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING

from qdiff.cli.correction_flags import PARTS
from qdiff.cli.quantization_flags import SIMULATED
from qdiff.sampling.rank import ALONE, Rank

if TYPE_CHECKING:
    from qdiff.calibration.settings import CalibrationSettings
    from qdiff.mixed_precision.criteria import MixedPrecision
    from qdiff.pipelines.correction import CorrectionSource
    from qdiff.pipelines.output import Output
    from qdiff.pipelines.pipeline import Pipeline
    from qdiff.pipelines.quantization import Quantization
    from qdiff.pipelines.run import Record, Run
    from qdiff.policy import QuantPolicy

CORRECTION = ("correct", "correct_fit", "correct_n", "correct_parts", "correct_interpolate")
ADDED = ("backend", "w_sym", "preset")  # in later versions than the others
# Flags that do not change the images, so that a run can be resumed with other values
FILES = ("cali_ckpt", "cali_data_path")
FREE = (*FILES, "device", "preset", "verbose", "dry_run", "cali_memory", "cali_devices", "low_memory", "logdir", "cond")


def policy_of(args: Namespace) -> "QuantPolicy":
    """Return the policy of the flags."""
    from qdiff.pipelines.methods import uniform_policy

    return uniform_policy(
        args.quant_mode,
        args.weight_bit,
        args.act_bit if args.quant_act else None,
        args.sm_abit,
        split=args.split,
        symmetric=args.a_sym,
        symmetric_weights=args.w_sym,
        min_max=args.a_min_max,
    )


def learning_of(args: Namespace) -> "CalibrationSettings":
    """Return the calibration settings of the flags; with `--resume_w`, the weights stay as they are."""
    from qdiff.block_recon import Schedule
    from qdiff.pipelines.methods import learning, rounding_schedule

    settings = learning(
        args.quant_mode,
        args.cali_batch_size,
        rounding_schedule(args.cali_iters, args.cali_lr_w),
        Schedule(args.cali_iters_a, args.cali_lr) if args.quant_act else None,
        p=args.cali_p,
        range_samples=args.cali_range_n,
        running_stat=args.running_stat,
        rs_sm_only=args.rs_sm_only,
        seed=args.seed,
        correct_bias=args.correct_bias,
    )
    return replace(settings, rounding=None, squant=False, closed_form=None) if args.resume_w else settings


def quantization_of(args: Namespace, rank: Rank = ALONE) -> "Quantization | None":
    """Return the quantization of the flags for a process; None for full precision."""
    from qdiff.calibration.plan import GIB
    from qdiff.pipelines.calibrate import Calibrate
    from qdiff.pipelines.calibration_set import DataSettings
    from qdiff.pipelines.quantization import LoadQuantized

    a = args
    if not a.ptq:
        return None
    if a.resume:
        act_bit = a.act_bit if a.quant_act else None
        low_memory = a.low_memory or a.backend != SIMULATED  # backends need no weights in floating point
        return LoadQuantized(a.cali_ckpt, a.weight_bit, act_bit, a.a_sym, a.split, a.sm_abit, low_memory)
    memory = None if a.cali_memory is None else int(a.cali_memory * GIB)
    data = DataSettings(a.cali_st, a.cali_n, a.cali_data_path)
    return Calibrate(
        policy_of(a),
        learning_of(a),
        data,
        memory,
        a.cali_ckpt if a.resume_w else None,
        a.cali_spectrum_n,
        a.act_groups,
        tuple(a.keep8),
        a.cali_devices if rank.first else 1,  # the others load what it calibrates
        _mixed_precision(a),
    )


def _mixed_precision(args: Namespace) -> "MixedPrecision | None":
    """Return the bits to choose by step; None if all have the same."""
    from qdiff.mixed_precision.criteria import BopsBudget, MixedPrecision, SignalToNoise

    if not args.mixed_precision:
        return None
    criterion = SignalToNoise(args.snr_ratio) if args.bops_budget is None else BopsBudget(args.bops_budget)
    return MixedPrecision(args.mixed_precision, criterion)


def correction_of(args: Namespace) -> "CorrectionSource | None":
    """Return the correction of the flags; None for none."""
    from qdiff.pipelines.correction import FitCorrection, LoadCorrection

    if args.correct is None:
        return None
    if args.correct == "auto":
        return FitCorrection(args.correct_fit, args.correct_n, args.correct_parts or PARTS)
    return LoadCorrection(args.correct, args.correct_interpolate)


def backend_of(args: Namespace) -> str:
    """Return the backend of the flags. Raises UserError if this machine has none of this name for these flags."""
    if args.backend == SIMULATED:
        return SIMULATED
    from qdiff.backends import check, resolved

    phases = bool(args.mixed_precision) or args.act_groups > 1
    backend = resolved(args.backend, phases=phases)
    check(backend, phases=phases)
    return backend


def record_of(args: Namespace, free: Collection[str], files: Collection[str] = ()) -> "Record":
    """Return the record of the flags.

    Args:
        args: the flags.
        free: names of this script's flags that do not change the images.
        files: names of this script's flags for files whose contents determine the images.
    """
    from qdiff.pipelines.methods import rounding_schedule
    from qdiff.pipelines.run import Record

    rate = rounding_schedule(args.cali_iters, args.cali_lr_w).lr  # as used, for defaults may change
    given, files = vars(args) | {"cali_lr_w": rate, "backend": backend_of(args)}, (*FILES, *files)
    unused = list(CORRECTION) if args.correct is None else []
    unused += [name for name in ADDED if getattr(args, name) in (False, None, SIMULATED)]
    # without them, folders of earlier versions can be resumed
    given = {name: value for name, value in given.items() if name not in unused}
    if args.correct not in (None, "auto"):
        files = (*files, "correct")
    free = [*FREE, *free, *files[len(FILES) :]]
    return Record(
        flags={name: value for name, value in given.items() if name not in free},
        free={name: given[name] for name in free if name in given},
        files={name: given[name] for name in files if given[name]},
    )


def assembled(
    pipeline: "Pipeline", args: Namespace, output: "Output", record: "Record", folder_flag: str = "-l"
) -> "Run":
    """Return the run of the flags. Raises UserError if they do not fit the model."""
    from qdiff.pipelines.run import Run

    rank = Rank.from_environment()
    quantization, correction = quantization_of(args, rank), correction_of(args)
    return Run(pipeline, quantization, output, args.logdir, record, folder_flag, rank, correction, backend_of(args))


def perform(run: "Run", args: Namespace) -> None:
    """Do, or with `--dry_run` plan, a run. Raises UserError for every error that the user can fix."""
    if not args.dry_run:
        run.execute(verbose=args.verbose)
    elif run.rank.first:
        run.dry_run()
