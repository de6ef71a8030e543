"""The plan of a table: what is missing, how to get it, time and memory of each row."""

from dataclasses import replace
from pathlib import Path

from qdiff.cli.table_commands import method_of
from qdiff.config.presets import Row, Table
from qdiff.errors import UserError
from qdiff.evaluation.choices import Choices
from qdiff.files.download import location


def show_plan(table: Table, out: Path, chosen: Choices, root: Path, device: str) -> None:
    """Print, for each row, what is there and what is missing, and the plan that the sampling script makes of it."""
    print(f"\n{table.title}, to {out}")
    print(f"weights: {_state(_weights(table, chosen), table.weights.how)}")
    if table.reference.how:
        print(f"reference: {_state(_reference(table, chosen), f'give --reference: {table.reference.how}')}")
    for row in table.rows:
        print(f"\n{row.name}: {_calibration(row, out)}", flush=True)
        method = method_of(table, row, out, root, device)
        waiting = [need for need in row.needs if not (out / need / "config.yaml").exists()]
        if waiting:
            print(f"  planned once there are files of {', '.join(waiting)}\n  {method.command}")
            continue
        try:
            replace(method, words=[*method.words, "--dry-run"]).run()
        except UserError as e:  # the other rows still have a plan
            print(f"  no plan: {e}")


def _weights(table: Table, chosen: Choices) -> Path:
    if chosen.weights:
        return chosen.weights
    return location(table.weights.published) if table.weights.published else Path(table.weights.file)


def _reference(table: Table, chosen: Choices) -> Path | None:
    return chosen.reference or (Path(table.reference.file) if table.reference.file else None)


def _state(path: Path | None, how: str) -> str:
    if path and path.exists():
        return f"'{path}', {path.stat().st_size / 1e9:.2f} GB" if path.is_file() else f"'{path}'"
    return f"missing{f', not at {path}' if path else ''}: {how}"


def _calibration(row: Row, out: Path) -> str:
    if "ptq" not in row.arguments:
        return "in full precision"
    if row.arguments.get("resume"):
        return f"calibrated before, '{row.arguments['cali_ckpt']}'"
    return "calibrated already" if (out / row.name / "quantized.safetensors").exists() else "to be calibrated"
