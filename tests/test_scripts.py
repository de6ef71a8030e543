"""The scripts take the packages beside them, whatever else is in Python's path."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.command_line import SCRIPTS

INSTALLED = str(Path(np.__file__).parents[1])


@pytest.mark.parametrize("options", [[], ["-P"]] if sys.version_info >= (3, 11) else [[]], ids=" ".join)
@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*.py")), ids=lambda path: path.name)
def test_packages_of_the_same_names_do_not_matter(script, options, tmp_path):
    for name in ("qdiff", "ddim", "ldm"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('another package')")
    path = os.pathsep.join([str(tmp_path), INSTALLED])
    words = [sys.executable, "-S", *options, script, "--help"]  # -S: no links of an installation
    ended = subprocess.run(words, cwd=tmp_path, env={"PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "") and ended.stdout.startswith("usage: ")
