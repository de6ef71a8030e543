"""What every program has from `run`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

LARGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
FAULTS = """
from qdiff.cli.parser import run
def main():
    import resource, torch
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
run(main)
"""


def faults(**variables: str) -> int:
    """Page faults of a tensor of 64 MiB."""
    environment = {k: v for k, v in os.environ.items() if k != "THP_MEM_ALLOC_ENABLE"} | variables
    return int(subprocess.run([sys.executable, "-c", FAULTS], env=environment, capture_output=True, check=True).stdout)


@pytest.mark.skipif(
    not LARGE_PAGES.exists() or "[madvise]" not in LARGE_PAGES.read_text(),
    reason="the kernel decides",
)
def test_tensors_lie_in_large_pages_unless_the_user_says_otherwise():
    assert faults() < 2**26 / 2**12 / 4
    assert faults(THP_MEM_ALLOC_ENABLE="0") >= 2**26 / 2**12
