"""Foreign checkpoints: whole ones load, hostile ones do nothing, broken ones end in one line."""

import argparse
import os
import pickle
import random
import shutil
import subprocess
import sys
import tracemalloc
import zipfile
from collections import OrderedDict
from functools import partial

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from qdiff.errors import UserError
from qdiff.files.pickles import format_of, load_pickle, read_weights, state_dict_of

WEIGHTS = {"conv.weight": torch.arange(12.0).reshape(3, 4), "conv.bias": torch.tensor([1.5, -2.0]).half()}
ZIP, OLD = torch.save, partial(torch.save, _use_new_zipfile_serialization=False)


def same(found, expected=WEIGHTS):
    return found.keys() == expected.keys() and all(
        found[key].dtype == value.dtype and torch.equal(found[key], value) for key, value in expected.items()
    )


def refusal(call, *args):
    """The message of the UserError that the call must end in."""
    with pytest.raises(UserError) as error:
        call(*args)
    assert str(error.value).isprintable()
    return str(error.value)


@pytest.mark.parametrize("save", [ZIP, OLD], ids=["zip", "old"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: w,
        OrderedDict,
        lambda w: {"state_dict": w, "epoch": 3, "callbacks": {}},
        lambda w: {"model": w, "step": 5},
        lambda w: {"state_dict": {"model": w}},
        lambda w: [w, {"state": {}, "param_groups": []}, 7, 1000, {"shadow": torch.zeros(2)}],
        lambda w: [{f"module.{key}": value for key, value in w.items()}],
        lambda w: {key: torch.nn.Parameter(value) for key, value in w.items()},
    ],
)
def test_weights_come_out_of_every_known_wrapping(tmp_path, save, wrap):
    path = tmp_path / "model.ckpt"
    save(wrap(WEIGHTS), path)
    found = read_weights(path)
    assert same(found)
    assert not any(value.requires_grad for value in found.values())


def test_a_prefix_that_only_some_names_have_stays(tmp_path):
    mixed = {"module.a": torch.ones(1), "b": torch.ones(1)}
    assert state_dict_of(mixed, tmp_path).keys() == mixed.keys()


@pytest.mark.parametrize(
    "obj", [None, 5, [], {}, [[]], {"state_dict": {}}, torch.ones(2), {"a": 1}, {3: torch.ones(1)}]
)
def test_no_dict_of_tensors_is_refused(obj):
    assert "some.pth" in refusal(state_dict_of, obj, "some.pth")


def test_a_list_that_holds_itself_ends(tmp_path):
    loop = []
    loop.append(loop)
    ZIP(loop, tmp_path / "loop.pt")
    refusal(read_weights, tmp_path / "loop.pt")


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


# Classes that published checkpoints name


LIGHTNING = """
import sys
from qdiff.files.pickles import read_weights
for path in sys.argv[1:]:
    assert read_weights(path)["w"].tolist() == [1.0, 2.0]
print(*(name for name in ("pytorch_lightning", "omegaconf") if name in sys.modules))
"""


def test_classes_of_lightning_are_neither_needed_nor_imported(tmp_path):
    module, name = "pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"
    fake = type(name, (), {"__module__": module})
    checkpoint = {
        "callbacks": {fake: {"best": np.float32(0.5), "all": np.arange(3), "count": np.int64(2)}},
        "hparams": OmegaConf.create({"a": {"b": [1, 2.5, "x", True, None]}, "c": "${a.b}"}),
        "args": argparse.Namespace(lr=0.1),
        "state_dict": {"w": torch.tensor([1.0, 2.0])},
    }
    parts = module.split(".")
    stubs = {".".join(parts[: i + 1]): argparse.Namespace() for i in range(len(parts))}
    with pytest.MonkeyPatch.context() as patch:
        for stub, content in stubs.items():
            patch.setitem(sys.modules, stub, content)
        setattr(stubs[module], name, fake)
        ZIP(checkpoint, tmp_path / "zip.ckpt")
        OLD(checkpoint, tmp_path / "old.ckpt")
    of_numpy_1 = (tmp_path / "old.ckpt").read_bytes().replace(b"cnumpy._core", b"cnumpy.core")
    (tmp_path / "numpy1.ckpt").write_bytes(of_numpy_1)
    command = [sys.executable, "-c", LIGHTNING, *tmp_path.glob("*.ckpt")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")


def test_loading_leaves_no_class_allowed(tmp_path):
    ZIP(WEIGHTS, tmp_path / "model.pt")
    before = set(torch.serialization.get_safe_globals())  # torch lists a set: its order says nothing
    load_pickle(tmp_path / "model.pt")
    assert set(torch.serialization.get_safe_globals()) == before


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
    contents = {
        "empty": b"",
        "web page": b"\n<!DOCTYPE html><html>Virus scan warning</html>",
        "git lfs pull": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "torch checkpoint": b"[notes]\n",
    }
    for word, content in contents.items():
        path = tmp_path / "file.ckpt"
        path.write_bytes(content)
        for read in (load_pickle, read_weights):
            message = refusal(read, path)
            assert word in message and str(path) in message and "weights_only" not in message
    assert "No such file" in refusal(load_pickle, tmp_path / "absent.ckpt")
    assert "directory" in refusal(load_pickle, tmp_path)
    save_file(WEIGHTS, tmp_path / "model.ckpt")
    assert "safetensors" in refusal(load_pickle, tmp_path / "model.ckpt")


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
