"""Presets: a table of published values is a folder in `configs/quant`, with a file for each row."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from qdiff.config.schema import checked_section, one_line, read_yaml
from qdiff.config.tables import SCRIPTS, Arguments, Reference, Row, Table, Weights
from qdiff.errors import UserError, suggestion

TABLE = "table.yaml"
ROW = re.compile(r"\d+_(\w+)\.yaml")  # the number gives the order
NEED = re.compile(r"\$\{rows\.(\w+)\}")


@dataclass
class TableFile:
    """Keys of `table.yaml`.

    Attributes:
        title: heading.
        script: which sampling script, of `SCRIPTS`.
        images: images per row; 0 if they are not counted, because prompts decide, and the number is not stated.
        features: weights of the feature network; empty for FID's Inception.
        metrics: names, as `--metrics` of `python -m qdiff evaluate` takes them; empty for all that can be computed.
        few: compute also what needs more images, under a name that says so.
        arguments: those that all rows share.
    """

    title: str
    script: str
    arguments: dict[str, Any]
    images: int = field(default=0, metadata={"minimum": 0})
    features: str = ""
    metrics: list[str] = field(default_factory=list)
    few: bool = False


@dataclass
class RowFile:
    """Keys of a row's file.

    Attributes:
        title: what it is called.
        source: where the values are published, or why there are none.
        arguments: further arguments; of those that the table has too, these count.
        published: key of a metric, as in docs/evaluation.md -> value.
    """

    title: str
    source: str
    arguments: dict[str, Any]
    published: dict[str, float] = field(default_factory=dict)


def table_names(presets: Path) -> list[str]:
    """Return the names of the tables in a folder of presets."""
    return sorted(path.parent.name for path in presets.glob(f"*/{TABLE}"))


def load_table(presets: Path, name: str, root: Path, out: Path) -> Table:
    """Read a table.

    Args:
        presets: folder of the tables.
        name: of the table.
        root: what `${root}` stands for in the files.
        out: folder of the runs; `${rows.NAME}` stands for that of a row in it.

    Raises:
        UserError: the table is unknown; a file is no YAML; a key is unknown, missing or of another type; or a reference
            leads nowhere.
    """
    names = table_names(presets)
    if name not in names:
        hint = suggestion(name, names) or (
            f"use {', '.join(names)}" if names else "run it in a clone of the repository"
        )
        raise UserError(f"no table '{name}' in '{presets}': {hint}")
    files = {found[1]: path for path in _row_files(presets / name) if (found := ROW.fullmatch(path.name))}
    if not files:
        raise UserError(f"'{presets / name}' has no rows: add a file such as 00_fp.yaml")
    known = {"root": str(root), "rows": {row: str(out / row) for row in files}}
    path = presets / name / TABLE
    config = _resolved(path, known)
    parts = {key: config.pop(key, None) for key in ("weights", "reference")}
    head = _checked(config, "table", TableFile, path)
    if head.script not in SCRIPTS:
        raise UserError(f"'{path}': table.script is '{head.script}': use {' or '.join(SCRIPTS)}")
    weights = _checked(parts["weights"], "weights", Weights, path)
    reference = _checked(parts["reference"] or OmegaConf.create({}), "reference", Reference, path)
    rows = tuple(_row(row, file, known, head.arguments) for row, file in files.items())
    if rows[0].arguments.get("ptq"):
        raise UserError(
            f"'{presets / name}': the first row, '{rows[0].name}', is not in full precision: add one that is"
        )
    shared = {key: getattr(head, key) for key in ("title", "script", "images", "features", "few")}
    return Table(name, weights=weights, reference=reference, rows=rows, metrics=tuple(head.metrics), **shared)


def _row_files(folder: Path) -> list[Path]:
    """Return the files of the rows. Raises UserError for a file that is none."""
    paths = sorted(path for path in folder.glob("*.y*ml") if path.name != TABLE)
    for path in paths:
        if not ROW.fullmatch(path.name):
            raise UserError(f"'{path}' is not named as a row, such as 00_fp.yaml: rename it")
    return paths


def _row(name: str, path: Path, known: Mapping[str, Any], shared: Arguments) -> Row:
    found = _checked(_resolved(path, known), "row", RowFile, path)
    text = OmegaConf.to_yaml(read_yaml(path))
    needs = tuple(dict.fromkeys(NEED.findall(text)))
    return Row(name, found.title, found.source, {**shared, **found.arguments}, found.published, needs)


def _resolved(path: Path, known: Mapping[str, Any]) -> DictConfig:
    """Return a file with its references replaced. Raises UserError if one leads nowhere."""
    config = OmegaConf.merge(known, read_yaml(path))
    try:
        OmegaConf.resolve(config)
    except OmegaConfBaseException as e:
        raise UserError(f"'{path}' refers to a value that it lacks ({one_line(e)}): correct it") from e
    assert isinstance(config, DictConfig)
    for key in known:
        del config[key]
    return config


def _checked(config: DictConfig | None, name: str, schema: type, path: Path) -> Any:
    """Return a section as an instance of its schema. Raises UserError as `load_table`."""
    known = [f.name for f in fields(schema)]
    for key in map(str, config if isinstance(config, DictConfig) else ()):
        if key not in known:
            hint = suggestion(key, known) or f"use {', '.join(known)}"
            raise UserError(f"'{path}': {name}.{key} is unknown: {hint}")
    section = checked_section(OmegaConf.create({name: config}), name, schema, path, "add it")
    return OmegaConf.to_object(section)
