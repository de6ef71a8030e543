"""Tests. Equal bytes need equal numbers of threads, also in child processes: one, or what OMP_NUM_THREADS says.

It is set before torch is imported, because torch reads it then.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
