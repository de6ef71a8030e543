"""Foreign checkpoints: whole ones load, hostile ones do nothing, broken ones end in one line."""

import argparse
import datetime
import os
import pathlib
import pickle
import random
import shlex
import shutil
import subprocess
import sys
import tracemalloc
import types
import uuid
import zipfile
from collections import defaultdict
from functools import partial

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from qdiff.errors import UserError
from qdiff.files.formats import format_of
from qdiff.files.pickles import load_pickle
from qdiff.files.state_dicts import read_state_dicts

WEIGHTS = {"conv.weight": torch.arange(12.0).reshape(3, 4), "conv.bias": torch.tensor([1.5, -2.0]).half()}
ZIP, OLD = torch.save, partial(torch.save, _use_new_zipfile_serialization=False)


def same(found, expected=WEIGHTS):
    return found.keys() == expected.keys() and all(
        found[key].dtype == value.dtype and torch.equal(found[key], value) for key, value in expected.items()
    )


def refusal(call, *args):
    """Return the message of the UserError that the call must raise."""
    with pytest.raises(UserError) as error:
        call(*args)
    assert str(error.value).isprintable()
    return str(error.value)


def read_weights(path):
    """Return the tensors of the first state dict."""
    return read_state_dicts(path)[0].tensors


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt", ".pth", ""])
@pytest.mark.parametrize("save", [ZIP, OLD, save_file], ids=["zip", "pickle", "safetensors"])
def test_the_content_decides_not_the_suffix(tmp_path, save, suffix):
    path = tmp_path / f"model{suffix}"
    save(WEIGHTS, path)
    assert format_of(path) == {ZIP: "zip", OLD: "pickle", save_file: "safetensors"}[save]
    assert same(read_weights(path))


def test_a_compressed_zip_is_not_mapped_as_numbers(tmp_path):
    ZIP(WEIGHTS, tmp_path / "model.pt")
    with zipfile.ZipFile(tmp_path / "model.pt") as old, zipfile.ZipFile(tmp_path / "small.pt", "w", 8) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert same(read_weights(tmp_path / "small.pt"))


def test_weights_are_mapped_not_read(tmp_path):
    path = tmp_path / "big.pt"
    ZIP({"w": torch.ones(1 << 23)}, path)  # 32 MiB
    tracemalloc.start()
    found = read_weights(path)["w"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20
    if sys.platform == "linux":
        with open("/proc/self/maps") as maps:
            assert any(str(path) in line for line in maps)
    assert found.sum() == 1 << 23


# Classes that trainers leave beside the tensors

READ = """
import sys
from qdiff.files.state_dicts import read_state_dicts
for path in sys.argv[1:]:
    assert read_state_dicts(path)[0].tensors["w"].tolist() == [1.0, 2.0], path
print(*(name for name in ("lightning", "pytorch_lightning", "omegaconf", "easydict") if name in sys.modules))
"""


class Item:
    """Something with a state, as a trainer's own classes have it."""

    def __init__(self):
        self.steps = [1, 2]


class Settings(dict):
    """A dict with attributes beside its items."""


class Names(list):
    """A list of a class of its own."""


class named:
    """Gives a class the name that it has in a package which need not be there, as long as it is pickled."""

    def __init__(self, path, base=Item):
        self.module, _, name = path.rpartition(".")
        self.cls = type(name, (base,), {"__module__": self.module})
        self.patch = pytest.MonkeyPatch()

    def __enter__(self):
        parts = self.module.split(".")
        for i in range(len(parts)):
            self.patch.setitem(sys.modules, ".".join(parts[: i + 1]), argparse.Namespace())
        setattr(sys.modules[self.module], self.cls.__name__, self.cls)
        return self.cls

    def __exit__(self, *_):
        self.patch.undo()


def left_by_trainers(folder):
    """Checkpoints of both formats for each kind of thing that trainers leave."""
    settings = Settings(lr=0.1)
    settings.path = "x"
    plain = {
        "numpy": {"best": np.float32(0.5), "all": np.arange(3), "count": np.int64(2), "dtype": np.dtype("f4")},
        "omegaconf": OmegaConf.create({"a": {"b": [1, 2.5, "x", True, None]}, "c": "${a.b}"}),
        "standard": [
            argparse.Namespace(lr=0.1),
            pathlib.PurePosixPath("/data"),
            pathlib.PureWindowsPath("C:/data"),
            datetime.datetime(2023, 5, 17),
            datetime.timedelta(seconds=3),
            uuid.UUID(int=5),
            types.SimpleNamespace(a=1),
            defaultdict(list, {"a": [1]}),
            {1, 2},
        ],
    }
    for name, content in plain.items():
        for kind, save in (("zip", ZIP), ("old", OLD)):
            save({"extra": content, "state_dict": {"w": torch.tensor([1.0, 2.0])}}, folder / f"{name}_{kind}.ckpt")
    for path, base in {
        "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint": Item,
        "lightning.pytorch.callbacks.early_stopping.EarlyStopping": Item,
        "pytorch_lightning.utilities.parsing.AttributeDict": Settings,
        "easydict.EasyDict": Settings,
        "mmengine.config.ConfigDict": Names,
        "__main__.TrainConfig": Item,
    }.items():
        with named(path, base) as cls:
            value = cls()
            if base is Settings:
                value |= settings
                value.path = "x"
            elif base is Names:
                value += ["a"]
            for kind, save in (("zip", ZIP), ("old", OLD)):
                content = {cls: value, "extra": [value, cls()], "state_dict": {"w": torch.tensor([1.0, 2.0])}}
                save(content, folder / f"{path}_{kind}.ckpt")
    of_numpy_1 = (folder / "numpy_old.ckpt").read_bytes().replace(b"cnumpy._core", b"cnumpy.core")
    (folder / "numpy1.ckpt").write_bytes(of_numpy_1)


def test_classes_of_trainers_are_neither_needed_nor_imported(tmp_path):
    left_by_trainers(tmp_path)
    command = [sys.executable, "-c", READ, *tmp_path.glob("*.ckpt")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")


def test_loading_leaves_no_class_allowed(tmp_path):
    left_by_trainers(tmp_path)
    before = set(torch.serialization.get_safe_globals())  # torch lists a set: its order says nothing
    load_pickle(tmp_path / "standard_zip.ckpt")
    assert set(torch.serialization.get_safe_globals()) == before


def test_what_is_refused_can_be_exported_with_the_command_of_the_message(tmp_path):
    path = tmp_path / "it's mine.ckpt"
    ZIP({"state_dict": WEIGHTS, "extra": [Attack(shutil.which, "python"), 3], "epoch": 3}, path)
    message = refusal(load_pickle, path)
    command = message.partition("where it can be loaded: ")[2].replace("python", shlex.quote(sys.executable), 1)
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    assert same(read_weights(tmp_path / "tensors.pt"))


# Hostile pickles


class Attack:
    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


def attacks(target):
    return {
        "posix.system": Attack(os.system, f"touch {target}"),
        "subprocess.Popen": Attack(subprocess.Popen, ["touch", target]),
        "shutil.copy": Attack(shutil.copy, sys.executable, target),
        "eval": Attack(eval, f"open({target!r}, 'w').close()"),
        "getattr": Attack(getattr, "", "join"),
    }


@pytest.mark.parametrize("name", attacks(""))
@pytest.mark.parametrize("write", [ZIP, OLD, *(partial(pickle.dump, protocol=p) for p in range(6))])
def test_no_code_of_a_pickle_runs(tmp_path, write, name):
    target, path = tmp_path / "touched", tmp_path / "model.ckpt"
    hostile = {"state_dict": WEIGHTS if write in (ZIP, OLD) else {}, "extra": attacks(str(target))[name]}
    with open(path, "wb") as file:
        write(hostile, file)
    message = refusal(read_weights, path)
    assert str(path) in message
    assert not target.exists()
    if write in (ZIP, OLD):
        assert name.split(".")[-1] in message and "nothing in it was executed" in message


def test_the_attacks_would_work_on_a_careless_reader(tmp_path):
    target = tmp_path / "touched"
    pickle.loads(pickle.dumps(attacks(str(target))["posix.system"]))
    assert target.exists()


def test_control_characters_of_a_file_do_not_reach_the_terminal(tmp_path):
    (tmp_path / "global.pt").write_bytes(b"cevil\x1b[2J\rmod\nname\n.")
    refusal(load_pickle, tmp_path / "global.pt")
    with zipfile.ZipFile(tmp_path / "member.pt", "w") as archive:
        archive.writestr("evil\x1b[2J", b"content")
    whole = (tmp_path / "member.pt").read_bytes()
    (tmp_path / "member.pt").write_bytes(whole.replace(b"content", b"cOntent"))
    assert "checksum" in refusal(load_pickle, tmp_path / "member.pt")


# Files that are something else, or broken


def test_what_is_no_checkpoint_is_named(tmp_path):
    (tmp_path / "notes").write_bytes(b"[notes]\n")
    message = refusal(load_pickle, tmp_path / "notes")
    assert "torch checkpoint" in message and str(tmp_path) in message and "weights_only" not in message
    save_file(WEIGHTS, tmp_path / "model.ckpt")
    assert "safetensors" in refusal(load_pickle, tmp_path / "model.ckpt")


def test_a_protocol_that_torch_does_not_read_safely_comes_with_the_command_too(tmp_path):
    torch.save({"state_dict": WEIGHTS}, tmp_path / "p4.ckpt", pickle_protocol=4)
    try:
        found = read_weights(tmp_path / "p4.ckpt")
    except UserError as error:
        assert "export the tensors" in str(error) and "nothing in it was executed" in str(error)
    else:  # a newer torch may
        assert same(found)


def saved(save, path):
    save({"state_dict": WEIGHTS, "epoch": 3} if save is not save_file else WEIGHTS, path)
    return path.read_bytes()


@pytest.mark.parametrize("save", [ZIP, OLD, save_file], ids=["zip", "old", "safetensors"])
def test_a_file_that_was_cut_short_is_refused_wherever_the_cut_is(tmp_path, save):
    path = tmp_path / "model.ckpt"
    whole = saved(save, path)
    for size in range(len(whole) - 1, 0, -1 if len(whole) < 600 else -3):
        os.truncate(path, size)
        refusal(read_weights, path)


def flips(whole, step, seed=0):
    """One random bit of every byte, or of every `step`-th."""
    dice = random.Random(seed)
    for i in range(dice.randrange(step), len(whole), step):
        yield whole[:i] + bytes([whole[i] ^ 1 << dice.randrange(8)]) + whole[i + 1 :]


def test_a_flipped_bit_in_a_zip_is_found_or_harmless(tmp_path):
    path = tmp_path / "model.ckpt"
    refused = 0
    for damaged in flips(saved(ZIP, path), step=4):
        path.write_bytes(damaged)
        try:
            assert same(read_weights(path))
        except UserError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 200


def test_a_flipped_bit_among_the_numbers_of_a_zip_is_found(tmp_path):
    path = tmp_path / "model.ckpt"
    whole = saved(ZIP, path)
    start = whole.index(WEIGHTS["conv.weight"].numpy().tobytes())
    for i in range(start, start + 48):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :])
        assert "checksum" in refusal(read_weights, path)


@pytest.mark.parametrize("save", [OLD, save_file], ids=["old", "safetensors"])
def test_a_flipped_bit_without_a_checksum_never_ends_in_a_traceback(tmp_path, save):
    path = tmp_path / "model.ckpt"
    for damaged in flips(saved(save, path), step=2):
        path.write_bytes(damaged)
        try:
            weights = read_weights(path)
        except UserError as error:
            assert "\n" not in str(error)
        else:
            assert all(isinstance(value, torch.Tensor) for value in weights.values())
