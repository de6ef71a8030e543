"""Presets: the tables of the repository, and bad files, each refused in one line that names file and key."""

import re
from pathlib import Path

import pytest
import yaml

from qdiff.config.presets import load_table, table_names
from qdiff.errors import UserError

PRESETS = Path(__file__).parents[3] / "configs" / "quant"
TABLE = {
    "title": "A table",
    "script": "ddim",
    "images": 3,
    "arguments": {"config": "${root}/tiny.yml", "timesteps": 4},
    "weights": {"argument": "ckpt", "file": "${root}/tiny.safetensors", "how": "made by hand"},
}
ROWS = {
    "00_fp": {"title": "full precision", "source": "a paper", "arguments": {}, "published": {"mae": 0}},
    "01_linear": {"title": "linear", "source": "a paper", "arguments": {"ptq": True, "quant_mode": "linear"}},
    "02_other": {
        "title": "other",
        "source": "none",
        "arguments": {"ptq": True, "timesteps": 5, "cali_data_path": "${rows.linear}/data.safetensors"},
    },
}


def write(folder: Path, table=None, **rows) -> Path:
    """Write a table named `mine` with some keys of its files changed; a key that is None is left out."""
    files = {"table": {**TABLE, **(table or {})}}
    files |= {name: {**row, **rows.get(name, {})} for name, row in ROWS.items()}
    (folder / "mine").mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        kept = {key: value for key, value in content.items() if value is not None}
        (folder / "mine" / f"{name}.yaml").write_text(yaml.safe_dump(kept))
    return folder


def load(folder: Path):
    return load_table(folder, "mine", Path("clone"), Path("out"))


def test_a_table(tmp_path):
    table = load(write(tmp_path))
    assert (table.title, table.script, table.images, table.features) == ("A table", "ddim", 3, "")
    assert table.weights.file == "clone/tiny.safetensors"
    assert [row.name for row in table.rows] == ["fp", "linear", "other"]
    fp, linear, other = table.rows
    assert fp.arguments == {"config": "clone/tiny.yml", "timesteps": 4}
    assert (fp.published, linear.published) == ({"mae": 0.0}, {})
    assert other.arguments["cali_data_path"] == "out/linear/data.safetensors"
    assert other.arguments["timesteps"] == 5, "a row's own arguments count"
    assert (linear.needs, other.needs) == ((), ("linear",))


def test_rows_bring_the_rows_that_they_need_and_full_precision(tmp_path):
    table = load(write(tmp_path))
    assert [row.name for row in table.selected(["other"]).rows] == ["fp", "linear", "other"]
    assert [row.name for row in table.selected(["linear"]).rows] == ["fp", "linear"]
    with pytest.raises(UserError, match=r"--rows: table 'mine' has no row 'linaer': did you mean linear\?"):
        table.selected(["linaer"])


def test_arguments_change_where_they_stand(tmp_path):
    changed = load(write(tmp_path)).with_arguments({"quant_mode": "squant", "timesteps": 2})
    assert [row.arguments.get("quant_mode") for row in changed.rows] == [None, "squant", None]
    assert [row.arguments["timesteps"] for row in changed.rows] == [2, 2, 2]
    with pytest.raises(UserError, match=r"'timestep' is no argument of table 'mine': did you mean timesteps\?"):
        changed.with_arguments({"timestep": 2})


@pytest.mark.parametrize(
    ("table", "rows", "message"),
    [
        ({"tilte": "x"}, {}, r"table.yaml': table.tilte is unknown: did you mean title\?"),
        ({"title": None}, {}, "table.yaml' lacks table.title: add it"),
        ({"images": -1}, {}, "table.images is -1: make it at least 0"),
        ({"images": "many"}, {}, "table.images is wrong"),
        ({"script": "dim"}, {}, "table.script is 'dim': use ddim or ldm or txt2img"),
        ({"weights": None}, {}, "has no section 'weights'"),
        ({"weights": {"argument": "ckpt", "how": "x", "md5": "0"}}, {}, "weights.md5 is unknown"),
        ({"reference": {"how": "x", "number": 1}}, {}, "reference.number is unknown"),
        ({"features": "${rot}/x"}, {}, "refers to a value that it lacks"),
        ({}, {"01_linear": {"source": None}}, "01_linear.yaml' lacks row.source: add it"),
        ({}, {"01_linear": {"published": {"fid": "low"}}}, "01_linear.yaml': row.published is wrong"),
        ({}, {"01_linear": {"publised": {}}}, r"row.publised is unknown: did you mean published\?"),
        ({}, {"02_other": {"arguments": {"x": "${rows.linaer}"}}}, "02_other.yaml' refers to a value that it lacks"),
        ({}, {"00_fp": {"arguments": {"ptq": True}}}, "the first row, 'fp', is not in full precision"),
    ],
)
def test_a_bad_preset_is_one_line(tmp_path, table, rows, message):
    with pytest.raises(UserError, match=message) as refused:
        load(write(tmp_path, table, **rows))
    assert "\n" not in str(refused.value)
    assert str(tmp_path / "mine") in str(refused.value)


def test_other_files_of_a_table(tmp_path):
    write(tmp_path)
    (tmp_path / "mine" / "linear.yaml").write_text("")
    with pytest.raises(UserError, match=r"not named as a row, such as 00_fp\.yaml"):
        load(tmp_path)
    for path in (tmp_path / "mine").iterdir():
        if path.name != "table.yaml":
            path.unlink()
    with pytest.raises(UserError, match="has no rows"):
        load(tmp_path)
    (tmp_path / "mine" / "00_fp.yaml").write_text("title: [")
    with pytest.raises(UserError, match=r"00_fp\.yaml' is not valid YAML"):
        load(tmp_path)


def test_an_unknown_table(tmp_path):
    with pytest.raises(UserError, match=r"no table 'mnie' in .*: did you mean mine\?"):
        load_table(write(tmp_path), "mnie", Path(), Path())
    with pytest.raises(UserError, match="run it in a clone"):
        load_table(tmp_path / "nowhere", "mine", Path(), Path())


PAPER = {  # row -> value, typed a second time
    "cifar10": {
        "fp": {"fid": 4.22},
        "linear_w8a8": {"fid": 118.26},
        "linear_w4a32": {"fid": 141.47},
        "linear_w4a8": {"fid": 188.11},
        "squant_w8a8": {"fid": 464.69},
        "qdiff_w8a32": {},
        "qdiff_w4a32": {"fid": 5.09},
        "qdiff_w8a8": {"fid": 3.75},
        "qdiff_w4a8": {"fid": 4.93},
        "ptqd_w8a8": {},
        "ptqd_w4a8": {},
    },
    "bedroom": {
        "fp": {"fid": 2.95},
        "qdiff_w8a8": {"fid": 4.53},
        "qdiff_w4a8": {"fid": 5.37},
        "ptqd_w8a8": {"fid": 3.75},
        "ptqd_w4a8": {"fid": 5.94},
    },
    "church": {
        "fp": {"fid": 4.02},
        "qdiff_w8a8": {"fid": 6.94},
        "qdiff_w4a8": {"fid": 7.80},
        "ptqd_w8a8": {},
        "ptqd_w4a8": {},
    },
    "imagenet": {
        "fp": {"fid": 11.28, "sfid": 7.70, "is": 364.7},
        "qdiff_w4a8": {"fid": 9.29, "sfid": 9.29, "is": 336.8},
        "ptqd_w4a8": {"fid": 8.74, "sfid": 7.98, "is": 344.7},
        "ptqd_mixed": {},
    },
    "sd-v1-4": {"fp": {"clip": 31.50}, "qdiff_w8a8": {"clip": 31.43}, "qdiff_w4a8": {"clip": 31.39}},
}


def test_every_table_is_there():
    assert table_names(PRESETS) == sorted([*PAPER, "emoji32", "emoji32-ptqd", "emoji64", "emoji64-txt2img"])


@pytest.mark.parametrize("name", PAPER)
def test_values_are_those_of_the_papers(name):
    table = load_table(PRESETS, name, PRESETS.parents[1], Path("out"))
    assert {row.name: row.published for row in table.rows} == PAPER[name]
    assert all("arXiv" in row.source for row in table.rows if row.published)
    for row in table.rows:
        if found := re.fullmatch(r".*_w(\d)a(\d+)", row.name):
            activations = row.arguments["act_bit"] if row.arguments.get("quant_act") else 32
            assert (row.arguments["weight_bit"], activations) == (int(found[1]), int(found[2]))
        else:
            assert ("ptq" in row.arguments) == (row.name == "ptqd_mixed")


COLUMNS = {"PSNR": "psnr", "distance": "mae", "FD": "frechet", "category": "recognised"}  # first word -> key


def document_rows(model: str) -> dict[str, dict[str, str]]:
    """The rows of the first table below a model's image in the document: method -> key of a metric -> cell."""
    text = (PRESETS.parents[1] / "docs" / "measurements.md").read_text(encoding="utf-8")
    table = re.search(r"(^\|.*\n)+", text.partition(f"](../{model}/demo.png)")[2], re.MULTILINE)[0]
    titles, _, *rows = [line.strip("| ").split(" | ") for line in table.splitlines()]
    keys = [COLUMNS.get(title.split()[0], title) for title in titles]
    return {row[0]: dict(zip(keys, row)) for row in rows}


@pytest.mark.parametrize("name", ["emoji32", "emoji64", "emoji64-txt2img"])
def test_values_of_bundled_models_are_those_of_the_document(name):
    table = load_table(PRESETS, name, Path(), Path("out"))
    rows = document_rows(str(Path(table.weights.file).parent))
    assert [row.title for row in table.rows] == [*rows]
    for row in table.rows:
        cells = rows[row.title]
        stated = {key: f"{x:.0%}" if key == "recognised" else f"{x:.2f}" for key, x in row.published.items()}
        trivial = {"psnr": "∞", "mae": "0.00"}
        shown = {key: cells[key] for key in COLUMNS.values() if key in cells and cells[key] != trivial.get(key)}
        assert shown == stated, row.name
