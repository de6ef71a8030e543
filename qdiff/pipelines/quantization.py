"""What every script does with `--ptq`: load a calibrated network, or collect data, calibrate and save one."""

import hashlib
import logging
import shutil
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from qdiff.adapters import adapter_for
from qdiff.block_recon import Schedule
from qdiff.calibration.data import CalibrationSet, read_calibration_data
from qdiff.calibration.job import calibrate
from qdiff.calibration.measure import make_plan
from qdiff.calibration.plan import GIB, Plan
from qdiff.calibration.settings import CalibrationSettings
from qdiff.calls import Call
from qdiff.checkpoints.load import load_quantized, load_rounding, save_quantized
from qdiff.errors import UserError
from qdiff.files.journal import Journal
from qdiff.pipelines.device import free_memory
from qdiff.pipelines.progress import CalibrationBar
from qdiff.policy import QuantPolicy, QuantSpec
from qdiff.quant_model import QuantModel

CHECKED = 64  # samples that are checked at a time, because a check takes memory as they do

log = logging.getLogger(__name__)


def policy_of(args: Namespace) -> QuantPolicy:
    """What the flags quantize: `linear` takes ranges from the extremes, `qdiff` searches those of activations."""
    search = "minmax" if args.quant_mode == "linear" or args.a_min_max else "mse"
    act = QuantSpec(args.act_bit, symmetric=args.a_sym, range_search=search) if args.quant_act else None
    weight = QuantSpec(args.weight_bit, per_channel=True, range_search="minmax")
    return QuantPolicy(weight, act, args.sm_abit, args.split)


def settings_of(args: Namespace) -> CalibrationSettings:
    """What the flags learn; `linear` learns nothing, `--resume_w` no rounding."""
    learns = args.quant_mode == "qdiff"
    return CalibrationSettings(
        batch_size=args.cali_batch_size,
        rounding=Schedule(args.cali_iters, args.cali_lr_w) if learns and not args.resume_w else None,
        steps=Schedule(args.cali_iters_a, args.cali_lr) if learns and args.quant_act else None,
        p=args.cali_p,
        range_samples=args.cali_range_n,
        running_stat=args.running_stat,
        rs_sm_only=args.rs_sm_only,
        seed=args.seed,
    )


def memory_budget(args: Namespace) -> int | None:
    """Bytes for captured activations, where the flags say so."""
    return None if args.cali_memory is None else int(args.cali_memory * GIB)


def digest(weights: Mapping[str, Tensor]) -> str:
    """sha256 over names, shapes and values."""
    sha = hashlib.sha256()
    for key, x in weights.items():
        sha.update(f"{key}{tuple(x.shape)}{x.dtype}".encode())
        sha.update(x.detach().cpu().contiguous().numpy())
    return sha.hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file that a flag names. Raises UserError if it cannot be read."""
    try:
        sha = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(2**20):
                sha.update(chunk)
        return sha.hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): check the path") from None


@dataclass(frozen=True)
class Quantization:
    """One quantization job of a script.

    Args:
        args: the flags.
        model: the network in full precision, on its device or, with `--resume`, where its file is read; it is changed.
        config: its configuration, JSON values, for the file.
        folder: where data, journal and the calibrated file are kept.
        collect: collects calibration data with the network in full precision, noting in a journal what is done.
        example: inputs of the network for one batch, for the plan.
        rows: samples that one image gives at one step, 2 with guidance.
    """

    args: Namespace
    model: nn.Module
    config: Mapping
    folder: Path
    collect: Callable[[Journal], CalibrationSet]
    example: tuple[Tensor, ...]
    rows: int = 1

    @property
    def file(self) -> Path:
        """The calibrated network, once it is finished."""
        return self.folder / "quantized.safetensors"

    @property
    def samples(self) -> int:
        """Size of the calibration set that the flags ask for; 0 where none is needed."""
        settings, act = settings_of(self.args), self.args.quant_act
        return self.args.cali_st * self.args.cali_n * self.rows if settings.rounding or act else 0

    def plan(self) -> Plan | None:
        """What the calibration will take; None when there is nothing to learn. The network is quantized for it.

        Raises:
            UserError: a calibrated file that the flags name does not fit.
        """
        if self.args.resume:
            self._load(self.args.cali_ckpt)
            return None
        model, settings = self.starting_point(), settings_of(self.args)
        if not (settings.rounding or settings.steps):
            return None
        budget = memory_budget(self.args)
        return make_plan(model, Call(self.example), self.samples, settings, budget, data_in_memory=False)

    def run(self) -> QuantModel:
        """The quantized network, loaded or calibrated.

        Raises:
            UserError: files that do not fit, too little memory or disk, a loss that is not finite.
        """
        if self.args.resume:
            return self._load(self.args.cali_ckpt)
        if self.file.exists():
            log.info("calibrated before: %s", self.file)
            return self._load(self.file)
        weights = digest(self.model.state_dict())
        data = self._data(weights) if self.samples else None
        model = self.starting_point()
        provenance = {"settings": asdict(settings_of(self.args)), "policy": model.policy.to_dict(), "weights": weights}
        if self.args.resume_w:
            provenance["cali_ckpt"] = file_digest(self.args.cali_ckpt)
        if data:
            provenance["data"] = data.digest()
            self._calibrate(model, data, provenance)
        save_quantized(self.file, model, config=self.config, provenance=provenance)
        log.info("saved %s, %.1f MB", self.file, self.file.stat().st_size / 1e6)
        model.forget_full_precision()  # sampling does without
        return model

    def _load(self, path: Path) -> QuantModel:
        a = self.args
        act_bit = a.act_bit if a.quant_act else None
        model = load_quantized(
            self.model,
            path,
            weight_bit=a.weight_bit,
            act_bit=act_bit,
            a_sym=a.a_sym,
            split=a.split,
            sm_abit=a.sm_abit,
            low_memory=a.low_memory,
        )
        return model.eval().to(self.example[0].device)

    def starting_point(self) -> QuantModel:
        """What calibration begins with: rounded to nearest, or with the weights of `--cali_ckpt`.

        Raises:
            UserError: the file is none, or does not fit the network or the flags.
        """
        policy = policy_of(self.args)
        if self.args.resume_w:
            return load_rounding(self.model, self.args.cali_ckpt, policy).eval()
        return QuantModel(self.model, policy, adapter_for(self.model)).eval()

    def _data(self, weights: str) -> CalibrationSet:
        """The given data, those of an earlier run of this command, or new ones from the model's trajectory."""
        a = self.args
        own = self.folder / "calibration_data.safetensors"
        if a.cali_data_path is None and not own.exists():
            journal = Journal(self.folder / "collecting", {"weights": weights})
            data = self.collect(journal)
            self._check(data, "the network's own sampling")
            data.save(own)
        else:
            source = a.cali_data_path or own
            data = read_calibration_data(source, a.cali_st, a.cali_n, self.rows, conditions=len(self.example) > 2)
            self._check(data, f"'{source}'")
        if own.exists():  # also after a kill that came between saving and this
            shutil.rmtree(self.folder / "collecting", ignore_errors=True)
        return data

    def _check(self, data: CalibrationSet, source: str) -> None:
        have, want = ([tuple(x.shape[1:]) for x in call.tensors] for call in (data.call, Call(self.example)))
        if have != want:
            raise UserError(
                f"calibration data from {source} have the shapes {have}, the network takes {want}: give data of this "
                "network, or leave out --cali_data_path"
            )
        if not all(torch.isfinite(x).all() for batch in data.batches(CHECKED) for x in batch.tensors):
            raise UserError(
                f"calibration data from {source} are not finite: check the weights, or give other data with "
                "--cali_data_path"
            )

    def _calibrate(self, model: QuantModel, data: CalibrationSet, job: Mapping) -> None:
        journal = Journal(self.folder / "journal", job)
        settings = settings_of(self.args)
        plan = make_plan(model, Call(self.example), len(data), settings, memory_budget(self.args))
        log.info("plan\n%s", plan.table())
        plan.check(self.folder, free_memory(self.example[0].device))
        with CalibrationBar(plan) as bar:
            calibrate(model, data, settings, journal, memory=plan.budget, reporter=bar)
