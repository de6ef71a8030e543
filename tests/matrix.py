"""Run the suite with several versions of PyTorch, each with one thread and with two: `make matrix`.

Needs only Python. Each version has its own virtual environment, `.venv-NAME`, which is created if missing.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
LOGS = ROOT / "build" / "matrix"
THREADS = (1, 2)
VERSIONS = "import platform, torch; print(torch.__version__.partition('+')[0], platform.python_version())"


@dataclass(frozen=True)
class Environment:
    """A Python version, and packages that are installed along with ours; all environments cover what we support."""

    python: str
    packages: tuple[str, ...]


ENVIRONMENTS = {
    "oldest": Environment("python3.10", ("torch==2.10.*", "torchvision==0.25.*")),
    "2.14": Environment("python3.11", ("torch==2.14.1",)),
    "newest": Environment("python3.12", ("torch", "torchvision")),
}


@dataclass(frozen=True)
class Outcome:
    """Result of the suite in one cell of the matrix; `versions` are those of PyTorch and Python."""

    versions: tuple[str, str]
    threads: int
    passed: int
    failed: int
    seconds: float

    @property
    def row(self) -> str:
        """A row of the table in docs/testing.md."""
        passed = f"{self.passed:,}" + (f", {self.failed:,} failed" if self.failed else "")
        minutes, seconds = divmod(round(self.seconds), 60)
        return f"| {' | '.join(self.versions)} | {self.threads} | {passed} | {minutes}:{seconds:02d} |"


HEADER = "| PyTorch | Python | threads | passed | time |\n| --- | --- | --- | --- | --- |"


def prepared(name: str) -> Path:
    """Return the folder of an environment; create it, or update it to pyproject.toml, if necessary."""
    folder, wanted = ROOT / f".venv-{name}", ENVIRONMENTS[name]
    stamp = folder / ".installed"
    if stamp.exists() and stamp.stat().st_mtime > (ROOT / "pyproject.toml").stat().st_mtime:
        return folder
    python = shutil.which(wanted.python)
    if python is None:
        sys.exit(f"error: {wanted.python} is not on the PATH: install it, or give --use {name}=FOLDER")
    print(f"{name}: installing into {folder.name}", flush=True)
    install = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--upgrade"]
    try:
        subprocess.run([python, "-m", "venv", folder], check=True)
        subprocess.run([*install, *wanted.packages, "--editable", ".[dev]"], cwd=ROOT, check=True)
    except subprocess.CalledProcessError as e:  # its output is above
        sys.exit(f"error: '{' '.join(map(str, e.cmd))}' failed: see above and fix that, or give --use {name}=FOLDER")
    stamp.touch()
    return folder


def run(name: str, folder: Path, threads: int, words: Sequence[str]) -> Outcome:
    """Run the suite in an environment; its output goes to a file."""
    python, report = folder / "bin" / "python", LOGS / f"{name}-{threads}.xml"
    report.unlink(missing_ok=True)
    env = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
    env |= {"OMP_WAIT_POLICY": "passive"}  # busy waiting is slow if another program takes a core
    versions = subprocess.run([python, "-c", VERSIONS], env=env, capture_output=True, text=True, check=True).stdout
    start = time.monotonic()
    with report.with_suffix(".log").open("w") as log:
        command = [python, "-m", "pytest", f"--junitxml={report}", *words]
        status = subprocess.run(command, cwd=ROOT, env=env, stdout=log, stderr=log, check=False).returncode
    return Outcome(tuple(versions.split()), threads, *counts(report, status), time.monotonic() - start)


def counts(report: Path, status: int) -> tuple[int, int]:
    """Count passed and failed tests in a JUnit report; at least one failed if `status` is not 0."""
    suite = ElementTree.parse(report).find("testsuite").attrib if report.exists() else {}
    total, skipped, failed, broken = (int(suite.get(key, 0)) for key in ("tests", "skipped", "failures", "errors"))
    failed += broken
    return total - skipped - failed, failed or int(status != 0)


def existing(word: str) -> tuple[str, Path]:
    """Parse NAME=FOLDER."""
    name, _, folder = word.partition("=")
    if name not in ENVIRONMENTS or not (Path(folder) / "bin" / "python").exists():
        raise argparse.ArgumentTypeError(f"{word!r} is not NAME=FOLDER with one of {', '.join(ENVIRONMENTS)}")
    return name, Path(folder).absolute()


def main(words: Sequence[str] | None = None) -> int:
    """Run the requested cells; return 1 if any failed."""
    parser = argparse.ArgumentParser(prog="make matrix", usage="make matrix ARGS='[NAME ...] [flags]'")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ENVIRONMENTS)} (default: all)")
    parser.add_argument("--threads", type=int, action="append", help="may be repeated (default: 1 and 2)")
    parser.add_argument("--use", type=existing, action="append", default=[], help="NAME=FOLDER, a virtual environment")
    parser.add_argument("--pytest", default="", help="further arguments for pytest, such as files")
    args = parser.parse_args(words)
    unknown = set(args.names) - ENVIRONMENTS.keys()
    if unknown:
        parser.error(f"{unknown.pop()} is not one of {', '.join(ENVIRONMENTS)}")
    LOGS.mkdir(parents=True, exist_ok=True)
    outcomes = run_cells(args.names or list(ENVIRONMENTS), args.threads or THREADS, dict(args.use), args.pytest.split())
    print(HEADER, *(outcome.row for outcome in outcomes), sep="\n")
    return int(any(outcome.failed for outcome in outcomes))


def run_cells(
    names: Sequence[str], threads: Sequence[int], folders: Mapping[str, Path], words: Sequence[str]
) -> list[Outcome]:
    """Run one cell after the other, so that each has the processor to itself."""
    outcomes = []
    for name in names:
        folder = folders.get(name) or prepared(name)
        for count in threads:
            outcomes.append(run(name, folder, count, words))
            print(f"{name}, {count} threads: {LOGS.relative_to(ROOT) / f'{name}-{count}.log'}", flush=True)
    return outcomes


if __name__ == "__main__":
    sys.exit(main())
