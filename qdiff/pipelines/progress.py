"""The progress bar of a calibration."""

import logging

from tqdm.auto import tqdm

from qdiff.block_recon import Outcome
from qdiff.calibration.plan import Plan
from qdiff.calibration.reporter import Reporter

log = logging.getLogger(__name__)


class CalibrationBar(Reporter):
    """One bar for the whole job: the current block, the last one's loss before and after, the time left.

    Its unit is the estimated time of a block, so that the time left is that of the job and not of equal blocks.

    Args:
        plan: of the calibration.
        shown: show the bar; None shows it on a terminal.
    """

    def __init__(self, plan: Plan, shown: bool | None = None):
        self.plan = plan
        self.position = {block.path: i for i, block in enumerate(plan.blocks)}
        self.cost = self.done = self.resumed = 0.0
        self.per_iteration = 0.0
        self.bar = tqdm(
            total=plan.seconds,
            unit="s",
            smoothing=0,  # the average rate of this process; a moving average would count resumed blocks
            bar_format="{desc} {percentage:3.0f}%|{bar:20}| {elapsed} elapsed, {remaining} left{postfix}",
            disable=None if shown is None else not shown,  # the log has a line per block
        )

    def __enter__(self) -> "CalibrationBar":
        return self

    def __exit__(self, *exc) -> None:
        self.bar.close()

    def start(self, block: str, stage: str) -> None:
        """Name the block."""
        self.cost = self.plan.block_seconds(self.position[block], stage)
        self.per_iteration = self.cost / self.plan.iterations(stage)
        self.bar.set_description_str(f"{stage} {block}")

    def advance(self, iterations: int) -> None:
        """Move on by what these iterations were estimated to take."""
        self.bar.update(iterations * self.per_iteration)

    def finish(self, block: str, stage: str, outcome: Outcome, resumed: bool) -> None:
        """Show the block's losses; blocks that an earlier run finished do not count for the speed."""
        self.done += self.cost
        if resumed:
            self.resumed += self.cost
            self.bar.initial = self.resumed  # set, not added to: a hidden bar has no such attribute
        self.bar.update(self.done - self.bar.n)
        kept = "" if outcome.improved or stage in ("solve", "biases") else ", kept as it was"
        self.bar.set_postfix_str(f"{block} loss {outcome.before:.4g} -> {outcome.after:.4g}{kept}")
        log.info(
            "%s %s: loss %.6g -> %.6g%s%s",
            stage,
            block,
            outcome.before,
            outcome.after,
            kept,
            ", from the journal" if resumed else "",
        )
