"""The plan of a table: what is missing, how to get it, and time, memory and disk, row by row and in all."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qdiff.cli.scripts import SCRIPTS
from qdiff.cli.table_commands import command_of
from qdiff.config.tables import Row, Table
from qdiff.errors import UserError
from qdiff.evaluation.choices import Choices
from qdiff.files.download import location
from qdiff.files.tables import aligned

TITLES = ("row", "state", "calibration", "sampling", "memory", "disk")
MEASURED = "Times are of this machine, with random weights; metrics, and images on the disk, are not counted."


@dataclass(frozen=True)
class RowPlan:
    """What is left to do for a row.

    Attributes:
        title: of the row.
        state: what is there.
        calibration, sampling: seconds.
        memory: bytes at the peak.
        kept: bytes of files that stay.
        passing: bytes of files while the row is calibrated.
    """

    title: str
    state: str
    calibration: float
    sampling: float
    memory: int
    kept: int
    passing: int

    @property
    def cells(self) -> list[str]:
        """The row of a table."""
        from qdiff.calibration.plan import format_duration

        times = map(format_duration, (self.calibration, self.sampling))
        return [self.title, self.state, *times, _bytes(self.memory), _bytes(self.kept + self.passing)]


def show_plan(table: Table, out: Path, chosen: Choices, root: Path, device: str) -> None:
    """Print what is there and what is missing, the plan of each row, their sum, and their command lines."""
    from tqdm import tqdm

    print(f"\n{table.title}, to {out}")
    print(f"weights: {_weights_state(table, chosen)}")
    if table.reference.how:
        path = chosen.reference or (Path(table.reference.file) if table.reference.file else None)
        print(f"reference: {_state(path, f'give --reference: {table.reference.how}')}")
    plans, refused = [], []
    for row in tqdm(table.rows, desc="planning", unit="row", disable=None, leave=False):
        if before := _unfinished(table, row, out):
            refused.append(f"{row.title}: no plan before {before} is calibrated, whose network it takes")
            continue
        try:
            plans.append(_plan(table, row, out, device))
        except UserError as e:  # the other rows still have a plan
            refused.append(f"{row.title}: no plan: {e}")
    print("", aligned([TITLES, *(plan.cells for plan in plans), _sum(plans).cells]), *refused, MEASURED, sep="\n")
    print("Each command line with --dry-run shows its plan block by block:")
    for row in table.rows:
        print(f"  {command_of(table, row, out, root, device)}")


def _unfinished(table: Table, row: Row, out: Path) -> str | None:
    """Return the title of the row whose quantized file a row takes, if it is not there yet."""
    file = row.arguments.get("cali_ckpt")
    if file is None or Path(str(file)).exists():
        return None
    return next((other.title for other in table.rows if out / other.name in Path(str(file)).parents), None)


def _plan(table: Table, row: Row, out: Path, device: str) -> RowPlan:
    """Measure a row. Raises UserError if it has no plan."""
    from qdiff.files.images import image_path
    from qdiff.pipelines.cost import measured_cost

    script, folder = SCRIPTS[table.script], out / row.name
    args = script.parse({**row.arguments, script.folder: folder, "device": device, "dry_run": True})
    run = script.run(args)
    quantization, wanted = run.quantization, run.output.num_images
    cost = measured_cost(run.pipeline, quantization)
    file, there = folder / "quantized.safetensors", sum(image_path(folder / "img", i).exists() for i in range(wanted))
    calibrates = args.ptq and not args.resume and not file.exists()
    collected = args.cali_n if calibrates and quantization and quantization.collects else 0
    return RowPlan(
        row.title,
        f"{_network_state(row, file)}, {there:,} of {wanted:,} images",
        (cost.calibration + collected * cost.image) * calibrates,
        (wanted - there) * cost.image,
        cost.memory,
        (cost.network_file + collected * args.cali_st * cost.inputs) * calibrates,
        cost.captured_files * calibrates,
    )


def _sum(plans: Sequence[RowPlan]) -> RowPlan:
    """Return the sum of rows that run one after another."""
    calibration, sampling = sum(plan.calibration for plan in plans), sum(plan.sampling for plan in plans)
    return RowPlan(
        "all",
        f"{(calibration + sampling) / 3600:,.1f} hours",
        calibration,
        sampling,
        max((plan.memory for plan in plans), default=0),
        sum(plan.kept for plan in plans),
        max((plan.passing for plan in plans), default=0),
    )


def _weights_state(table: Table, chosen: Choices) -> str:
    if chosen.random:
        return f"random, '{chosen.weights}' is made when the table is"
    stated = location(table.weights.published) if table.weights.published else Path(table.weights.file)
    return _state(chosen.weights or stated, table.weights.how)


def _state(path: Path | None, how: str) -> str:
    if path and path.exists():
        return f"'{path}', {path.stat().st_size / 1e9:.2f} GB" if path.is_file() else f"'{path}'"
    return f"missing{f', not at {path}' if path else ''}: {how}"


def _network_state(row: Row, file: Path) -> str:
    if "ptq" not in row.arguments:
        return "full precision"
    if row.arguments.get("resume"):
        return "calibrated before"
    return "calibrated" if file.exists() else "to be calibrated"


def _bytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
