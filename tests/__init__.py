"""Tests. Equal bytes need equal numbers of threads, also in child processes: one, set before torch is imported."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
