"""Our file: comes back exactly, byte for byte the same each time, and no damage goes unnoticed."""

import json
import random
import resource
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from qdiff.checkpoints import quantized_file
from qdiff.checkpoints.quantized_file import QuantizedFile, is_quantized, read_quantized, write_quantized
from qdiff.checkpoints.summary import Layer
from qdiff.errors import UserError
from qdiff.policy import QuantPolicy, QuantSpec


def example(bits=4) -> QuantizedFile:
    draw = torch.Generator().manual_seed(bits)
    codes = torch.randint(2**bits, (6, 5, 3, 3), generator=draw, dtype=torch.uint8)
    return QuantizedFile(
        policy=QuantPolicy(QuantSpec(bits, per_channel=True), QuantSpec(8, symmetric=True), 16, split=True),
        family="ddim",
        config={"model": {"ch": 32, "ch_mult": [1, 2]}, "name": "ü"},
        layers={"b.conv": Layer((6, 5, 3, 3), bits, (3, 2)), "a.fc": Layer((6, 3), bits)},
        state={
            "b.conv.codes": codes,
            "b.conv.weight_quantizer.parts.0.delta": torch.rand(6, 1, 1, 1, generator=draw),
            "b.conv.weight_quantizer.parts.0.zero_point": torch.arange(6.0).view(6, 1, 1, 1),
            "b.conv.act_quantizer.parts.0.delta": torch.tensor(0.25),
            "b.conv.act_quantizer.parts.0.zero_point": torch.tensor(0.0),
            "b.conv.bias": torch.randn(6, generator=draw),
            "a.fc.codes": codes[:, :3, 0, 0].contiguous(),
            "norm.weight": torch.randn(7, generator=draw).half(),
            "norm.scale": torch.randn(3, generator=draw).bfloat16(),
        },
        provenance={"seed": 3, "loss": 0.125},
    )


def refusal(path) -> str:
    with pytest.raises(UserError) as error:
        read_quantized(path)
    message = str(error.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def same(found, expected) -> bool:
    return found.keys() == expected.keys() and all(
        found[key].dtype == x.dtype and found[key].shape == x.shape and torch.equal(found[key], x)
        for key, x in expected.items()
    )


@pytest.mark.parametrize("bits", range(2, 9))
def test_what_was_written_is_read(tmp_path, bits):
    file = example(bits)
    write_quantized(tmp_path / "q.safetensors", file)
    found = read_quantized(tmp_path / "q.safetensors")
    assert same(found.state, file.state)
    assert found.versions.keys() == {"qdiff", "torch"}
    assert replace(found, state=file.state, versions={}) == file
    assert found.shapes == {key: tuple(x.shape) for key, x in file.state.items()}


def test_any_name_will_do(tmp_path):
    path = tmp_path / "bad\udcff" / "q"
    write_quantized(path, example())
    assert is_quantized(path) and same(read_quantized(path).state, example().state)


def test_codes_are_packed(tmp_path):
    write_quantized(tmp_path / "q", example(4))
    with safe_open(tmp_path / "q", "pt") as file:
        assert file.get_tensor("b.conv.codes").shape == (6 * 5 * 3 * 3 // 2,)
        assert file.get_tensor("b.conv.weight_quantizer.parts.0.zero_point").dtype == torch.uint8


@pytest.mark.parametrize(
    "values",
    [[0, 255], [0, 256], [-1, 7], [32767, -32768], [32768], [-40000, 2**24], [2.0**31], [-(2.0**31)], [2.0**40, 1]],
)
def test_any_zero_point_is_exact(tmp_path, values):
    path = tmp_path / "q"
    zero_point = torch.tensor(values, dtype=torch.float32)
    state = {"a.codes": torch.zeros(1, 1).byte(), "a.zero_point": zero_point}
    write_quantized(path, replace(example(), layers={"a": Layer((1, 1), 4)}, state=state))
    assert same(read_quantized(path).state, {"a.codes": torch.zeros(1, 1).byte(), "a.zero_point": zero_point})


def test_the_same_content_gives_the_same_bytes(tmp_path):
    file = example()
    shuffled = replace(
        file,
        config=dict(reversed(file.config.items())),
        provenance=dict(reversed(file.provenance.items())),
        state=dict(sorted(file.state.items(), key=lambda item: ".codes" not in item[0])),
    )
    assert list(shuffled.state) != list(file.state)
    for i in range(8):
        write_quantized(tmp_path / str(i), shuffled if i % 2 else file)
    assert len({(tmp_path / str(i)).read_bytes() for i in range(8)}) == 1


def test_the_file_tells_about_itself(tmp_path):
    write_quantized(tmp_path / "q", example())
    summary = read_quantized(tmp_path / "q").summary
    assert summary.layers == {"b.conv": Layer((6, 5, 3, 3), 4, (3, 2)), "a.fc": Layer((6, 3), 4)}
    assert list(summary.layers) == ["b.conv", "a.fc"]  # the order of the network
    assert (summary.weight_bits, summary.split) == (4, True)
    assert (summary.activations.symmetric, summary.activations.bits, summary.activations.softmax_bits) == (True, 8, 16)
    assert summary.parameters == 6 * 5 * 3 * 3 + 6 * 3 + 6 + 7 + 3


def test_numeric_keys_in_the_configuration_do_not_break_the_digest(tmp_path):
    write_quantized(tmp_path / "q", replace(example(), config={10: "ten", 9: "nine"}))
    assert read_quantized(tmp_path / "q").config == {"9": "nine", "10": "ten"}


def test_every_flipped_bit_is_noticed(tmp_path):
    path = tmp_path / "q.safetensors"
    write_quantized(path, example())
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    draw = random.Random(0)
    places = [draw.randrange(header) for _ in range(500)] + [draw.randrange(header, len(whole)) for _ in range(100)]
    for place in places:
        broken = bytearray(whole)
        broken[place] ^= 1 << draw.randrange(8)
        path.write_bytes(broken)
        refusal(path)
    path.write_bytes(whole.replace(b"u00fc", b"u00Fc"))  # a single bit, which leaves the meaning as it is
    refusal(path)


def test_every_truncation_is_noticed(tmp_path):
    path = tmp_path / "q.safetensors"
    write_quantized(path, example())
    whole = path.read_bytes()
    for length in [*range(20), *range(20, len(whole), 61), len(whole) - 1]:
        path.write_bytes(whole[:length])
        refusal(path)
    path.write_bytes(whole + b"\0")
    refusal(path)


def rewrite(path, change):
    with safe_open(path, "pt") as file:
        header, tensors = json.loads(file.metadata()["qdiff"]), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    change(header, tensors)
    save_file(tensors, path, {"qdiff": json.dumps(header, sort_keys=True, separators=(",", ":"))})


def test_a_rewritten_file_is_whole_when_nothing_changed(tmp_path):
    write_quantized(tmp_path / "q", example())
    rewrite(tmp_path / "q", lambda header, tensors: None)
    assert same(read_quantized(tmp_path / "q").state, example().state)


@pytest.mark.parametrize(
    "change",
    [
        lambda header, tensors: tensors.pop("b.conv.bias"),
        lambda header, tensors: tensors.update(extra=torch.zeros(1)),
        lambda header, tensors: tensors.update({"b.conv.bias": tensors["b.conv.bias"].double()}),
        lambda header, tensors: header["config"].update(name="other"),
        lambda header, tensors: header["policy"].update(split=False),
        lambda header, tensors: header.pop("sha256"),
        lambda header, tensors: header.pop("format"),
        lambda header, tensors: header.update(version="1"),
        lambda header, tensors: header.update(version=0),
        lambda header, tensors: header.clear(),
    ],
)
def test_every_change_by_hand_is_noticed(tmp_path, change):
    write_quantized(tmp_path / "q", example())
    rewrite(tmp_path / "q", change)
    assert "damaged" in refusal(tmp_path / "q")


def test_a_later_version_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(quantized_file, "UNIFORM", 4)
    write_quantized(tmp_path / "q", example())
    monkeypatch.undo()
    assert "has format 4, this program reads 3: update qdiff" in refusal(tmp_path / "q")


@pytest.mark.parametrize(
    ("changes", "version"),
    [
        ({}, 1),
        ({"act_rules": (("a.fc", 6),)}, 2),
        ({"act_phases": ((600, 4),)}, 3),
        ({"act_rules": (("a.fc", 6),), "act_phases": ((600, 4),)}, 3),
    ],
)
def test_the_version_is_the_first_whose_readers_understand_the_policy(tmp_path, changes, version):
    file = replace(example(), policy=replace(example().policy, **changes))
    write_quantized(tmp_path / "q", file)
    with safe_open(tmp_path / "q", "pt") as stored:
        header = json.loads(stored.metadata()["qdiff"])
    assert header["version"] == version and ("act_phases" in header["policy"]) == (version == 3)
    assert read_quantized(tmp_path / "q").policy == file.policy


def test_other_files_are_none_of_ours(tmp_path):
    save_file({"conv.weight": torch.ones(2)}, tmp_path / "fp.safetensors")
    assert not is_quantized(tmp_path / "fp.safetensors")
    assert "--ckpt" in refusal(tmp_path / "fp.safetensors")
    refusal(tmp_path / "missing")
    refusal(tmp_path)
    (tmp_path / "text").write_text("hello, this is no model")
    refusal(tmp_path / "text")
    write_quantized(tmp_path / "q", example())
    assert is_quantized(tmp_path / "q")


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "q"
    write_quantized(path, example(2))
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(UserError, match="cannot write"):
            write_quantized(path, example(8))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_codes_beyond_their_bits_are_refused(tmp_path):
    file = example(8)
    with pytest.raises(ValueError, match="does not fit into 4 bits"):
        layers = {path: layer._replace(bits=4) for path, layer in file.layers.items()}
        write_quantized(tmp_path / "q", replace(file, layers=layers))
    assert not list(tmp_path.iterdir())


def test_files_are_readable_as_any_other(tmp_path):
    (tmp_path / "plain").touch()
    write_quantized(tmp_path / "q", example())
    assert (tmp_path / "q").stat().st_mode == (tmp_path / "plain").stat().st_mode
