"""The progress of a calibration, as it is told."""

from qdiff.block_recon import Outcome


class Reporter:
    """Receives the progress of a calibration; this one ignores it."""

    def start(self, block: str, stage: str) -> None:
        """Note that a block is begun."""

    def advance(self, iterations: int) -> None:
        """Note that so many more iterations of the current block are done."""

    def finish(self, block: str, stage: str, outcome: Outcome, resumed: bool) -> None:
        """Note that a block is done; `resumed` if the journal had it."""
