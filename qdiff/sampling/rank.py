"""This process among those that torchrun, Lightning Fabric or a cluster started together."""

import os
from dataclasses import dataclass

from qdiff.errors import UserError

MOST = 2**20  # processes
# Variables of the rank, the number of processes and the rank on this machine: torch's, which torchrun and Fabric set;
# those of SLURM's srun, whose number is that of the step, for a batch script without srun has that of the job; those of
# LSF's jsrun.
LAUNCHERS = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
    ("JSM_NAMESPACE_RANK", "JSM_NAMESPACE_SIZE", "JSM_NAMESPACE_LOCAL_RANK"),
)


@dataclass(frozen=True)
class Rank:
    """A process among `count` that share a job.

    Attributes:
        index: 0..count - 1.
        count: processes, 1..2^20.
        local: the process's index among those on its machine.
    """

    index: int = 0
    count: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """Whether it does what one process does for all."""
        return self.index == 0

    @property
    def alone(self) -> bool:
        """Whether there is no other."""
        return self.count == 1

    @classmethod
    def from_environment(cls) -> "Rank":
        """Return the rank that the launcher of this process set in the environment; alone without one.

        Raises:
            UserError: a variable is missing, no number, or contradicts another one.
        """
        for index, count, local in LAUNCHERS:
            if count in os.environ:
                remedy = f"start the processes with torchrun, or unset {count} for a single one"
                processes = _number(count, 1, MOST, remedy)
                remedy = f"{count} is {processes}; {remedy}"
                found = _number(index, 0, processes - 1, remedy)
                on_machine = _number(local, 0, processes - 1, remedy) if local in os.environ else found
                return cls(found, processes, on_machine)
        return cls()


ALONE = Rank()


def _number(name: str, low: int, high: int, remedy: str) -> int:
    """Return the number in a variable of the environment. Raises UserError if it is not in low..high."""
    text = os.environ.get(name, "")
    if not text.isdecimal() or not low <= int(text) <= high:
        found = f"is {text!r}" if name in os.environ else "is not set"
        raise UserError(f"{name} in the environment {found} and must be a whole number in {low}..{high}: {remedy}")
    return int(text)
