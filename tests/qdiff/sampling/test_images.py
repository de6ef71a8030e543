import io
import os
import random
import threading
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tqdm import tqdm

from qdiff.errors import UserError
from qdiff.files import atomic
from qdiff.files.images import image_path, to_uint8
from qdiff.sampling import images as sampling_images
from qdiff.sampling.images import frame_writer, missing_images, sample_images
from qdiff.sampling.noise import batch_noise
from qdiff.sampling.run_folder import RunFolder
from tests.processes import forkserver

SHAPE = (3, 8, 8)
SEED = 1234


def toy(indices, *, shape=SHAPE, steps=4, slow=0.0):
    """Take steps with noise, elementwise, so that images of a batch are independent."""
    x, noise = batch_noise(SEED, indices, shape)
    for _ in range(steps):
        time.sleep(slow)
        x = 0.9 * x.tanh() + 0.3 * noise(x)
        yield x


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert sample_images(toy, range(16), folder, SHAPE, 16) == 16
    return folder


@given(
    batch_size=st.sampled_from([1, 3, 8]),
    order=st.permutations(range(8)),
    seed=st.integers(0, 2**32 - 1),
    dtypes=st.lists(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]), max_size=3),
)
@settings(max_examples=25, deadline=None)
def test_noise_of_an_image_does_not_depend_on_the_batch(batch_size, order, seed, dtypes):
    def draw(indices):
        x_T, noise = batch_noise(seed, indices, SHAPE)
        later = [noise(torch.empty(len(indices), 2, 5, dtype=dtype)) for dtype in dtypes]
        assert [z.dtype for z in later] == dtypes
        return [dict(zip(indices, z)) for z in (x_T, *later)]

    together = draw(range(8))
    apart = [{} for _ in together]
    for start in range(0, 8, batch_size):
        for images, part in zip(apart, draw(order[start : start + batch_size])):
            images.update(part)
    for a, b in zip(together, apart):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[i], b[i]) for i in a)


def test_noise_is_pinned():
    """The numbers themselves: another release of this package or of numpy must not change anyone's images."""
    x_T, noise = batch_noise(1234, [0, 7], (2, 2))
    expected_x = [
        [[0.695591569, 0.723959148], [0.717667520, 0.490356058]],
        [[-1.345820546, -0.434070796], [-0.755765676, 0.155237779]],
    ]
    expected_z = [[0.683075726, -1.416437626], [-0.666874707, -0.637653649]]
    torch.testing.assert_close(x_T, torch.tensor(expected_x), rtol=0, atol=1e-6)
    torch.testing.assert_close(noise(torch.empty(2, 2)), torch.tensor(expected_z), rtol=0, atol=1e-6)


def test_streams_of_seeds_and_images_are_all_different():
    pairs = [(s, i) for s in (0, 1, 2, 5, 5 + 2**32, 2**32 - 1) for i in (0, 1, 2, 5, 40, 2**32)]
    seen = {batch_noise(s, [i], (4,))[0].numpy().tobytes() for s, i in pairs}
    assert len(seen) == len(pairs)
    many, _ = batch_noise(0, range(4000), (1,))
    many = torch.cat([many, batch_noise(0, range(4000), (2,))[0][:, 1:]], 1)
    assert len(many.unique(dim=0)) == 4000


def test_noise_is_standard_gaussian_and_white():
    x_T, noise = batch_noise(3, range(200), (500,))
    z = torch.cat([x_T, noise(x_T)], 1)
    n = z.numel()
    assert abs(z.mean()) < 5 / n**0.5
    assert abs(z.var() - 1) < 5 * (2 / n) ** 0.5
    assert abs((z < 1).float().mean() - 0.841345) < 5 * 0.37 / n**0.5
    correlation = torch.corrcoef(z) - torch.eye(200)
    assert correlation.abs().max() < 6 / 1000**0.5


def test_noise_of_another_batch_is_refused():
    _, noise = batch_noise(0, [0, 1], SHAPE)
    with pytest.raises(ValueError, match="zip"):
        noise(torch.empty(3, *SHAPE))


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_images_do_not_depend_on_the_batch_size(batch_size, undisturbed, tmp_path):
    assert sample_images(toy, reversed(range(16)), tmp_path, SHAPE, batch_size) == 16
    assert files(tmp_path) == files(undisturbed)


def test_images_hold_the_last_step_decoded(tmp_path):
    def sample(indices):
        yield torch.full((len(indices), 1, 4, 4), torch.nan)
        yield torch.tensor(indices).float()[:, None, None, None].expand(-1, 1, 4, 4)

    sample_images(sample, [3, 10], tmp_path, (3, 4, 4), 2, decode=lambda z: z.expand(-1, 3, -1, -1) / 127.5 - 1)
    assert sorted(files(tmp_path)) == ["000003.png", "000010.png"]
    for i in (3, 10):
        image = Image.open(image_path(tmp_path, i))
        assert (image.mode, image.size) == ("RGB", (4, 4))
        assert (np.asarray(image) == i).all()


def test_channels_rows_and_columns_stay_what_they_are(tmp_path):
    pixels = torch.arange(3 * 2 * 4, dtype=torch.float32).view(1, 3, 2, 4)
    sample_images(lambda indices: [pixels / 127.5 - 1], [0], tmp_path, (3, 2, 4), 1)
    stored = np.asarray(Image.open(tmp_path / "000000.png"))
    np.testing.assert_array_equal(stored, pixels[0].permute(1, 2, 0))


def test_only_missing_images_are_made_and_the_same_again(undisturbed, tmp_path):
    sample_images(toy, range(10), tmp_path, SHAPE, 4)
    for i in (0, 4, 7):
        image_path(tmp_path, i).unlink()
    before = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    asked = []

    def sample(indices):
        asked.append(list(indices))
        return toy(indices)

    assert sample_images(sample, range(16), tmp_path, SHAPE, 4) == 9
    assert asked == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]], "as in an undisturbed run"
    assert files(tmp_path) == files(undisturbed)
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in before} == before
    assert sample_images(sample, range(16), tmp_path, SHAPE, 4) == 0


def in_company(indices):
    """Samples of a network whose results depend on the batch, more than rounding errors do."""
    *_, x = toy(indices)
    return [x + x.mean()]


def test_an_interrupted_batch_is_sampled_as_it_was(tmp_path):
    sample_images(in_company, range(10), tmp_path / "undisturbed", SHAPE, 4)
    sample_images(in_company, range(10), tmp_path / "disturbed", SHAPE, 4)
    for i in (1, 2, 9):
        image_path(tmp_path / "disturbed", i).unlink()
    assert sample_images(in_company, range(10), tmp_path / "disturbed", SHAPE, 4) == 3
    assert files(tmp_path / "disturbed") == files(tmp_path / "undisturbed")


def test_batches_of_other_processes_are_left_to_them_or_made_if_they_end(tmp_path, monkeypatch):
    """The first batch is another process's, which ends without it; the second one's process makes it."""
    monkeypatch.setattr(sampling_images, "POLL", 0)
    asked, events = [], iter([False, False, True, False, False, True, True])

    @contextmanager
    def claim(batch):
        asked.append(batch[0])
        if asked == [0, 4, 8, 0, 4]:
            sample_images(toy, range(4, 8), tmp_path, SHAPE, 4)
        yield next(events)

    assert sample_images(toy, range(12), tmp_path, SHAPE, 4, claim=claim) == 8
    assert asked == [0, 4, 8, 0, 4, 0, 4]
    assert len(files(tmp_path)) == 12


def test_text_chunks(tmp_path):
    texts = {"prompt": "ein roter Apfel 🍎, naïve\nsecond line", "seed": "41", "empty": ""}
    sample_images(toy, [0, 1], tmp_path, SHAPE, 2, metadata=lambda i: {**texts, "image": str(i)})
    for i in (0, 1):
        assert Image.open(image_path(tmp_path, i)).text == {**texts, "image": str(i)}


def test_no_image_of_a_batch_that_is_not_finite(tmp_path):
    def sample(indices):
        x = torch.zeros(len(indices), *SHAPE)
        for bad, value in ((5, torch.nan), (6, torch.inf)):
            if bad in indices:
                x[indices.index(bad), 1, 2, 3] = value
        yield x

    with pytest.raises(UserError, match=r"^image 5 is not finite .*full precision and float32") as caught:
        sample_images(sample, range(12), tmp_path, SHAPE, 4)
    assert "\n" not in str(caught.value) and "--" not in str(caught.value), "no flag is known here"
    assert sorted(files(tmp_path)) == [f"00000{i}.png" for i in range(4)]
    with pytest.raises(UserError, match=r"^image 6 "):
        sample_images(sample, [6], tmp_path, SHAPE, 4)


def save(pixels: np.ndarray, path: Path, **options) -> None:
    Image.fromarray(pixels).save(path, format="PNG", **options)


@pytest.mark.parametrize(
    ("put", "said"),
    [
        (
            lambda p: save(np.zeros((80, 80, 3), np.uint8), p),
            r"different image \(8-bit RGB, 80 x 80\) than expected",
        ),
        (
            lambda p: save(np.zeros((8, 8), np.uint8), p),
            r"\(8-bit grey, 8 x 8\) than expected \(8-bit RGB, 8 x 8\)",
        ),
        (lambda p: p.write_bytes(p.with_name("000000.png").read_bytes()[:-4]), "is incomplete"),
        (lambda p: p.mkdir(), "is not a file"),
        (lambda p: p.symlink_to("nowhere"), r"cannot be read \(No such file"),
    ],
)
def test_what_stands_in_the_place_of_an_image_is_refused_before_anything_is_sampled(put, said, tmp_path):
    sample_images(toy, [0, 1], tmp_path, SHAPE, 2)
    put(image_path(tmp_path, 9))
    before = {name: os.lstat(tmp_path / name).st_mtime_ns for name in os.listdir(tmp_path)}

    def sample(indices):
        raise AssertionError("sampled")

    with pytest.raises(UserError, match=rf"^'{tmp_path}/000009.png' .*{said}.*: move or delete it.*the same command"):
        sample_images(sample, range(10), tmp_path, SHAPE, 4)
    assert {name: os.lstat(tmp_path / name).st_mtime_ns for name in os.listdir(tmp_path)} == before
    assert sample_images(toy, range(9), tmp_path, SHAPE, 4) == 7, "what is not asked for does not matter"


def test_a_link_to_a_right_image_is_one(undisturbed, tmp_path):
    image_path(tmp_path, 3).symlink_to(image_path(undisturbed, 3))
    assert missing_images(range(5), tmp_path, SHAPE) == [0, 1, 2, 4]
    assert missing_images(range(2), tmp_path / "none", SHAPE) == [0, 1]


def test_images_of_one_channel_are_grey(tmp_path):
    grey = partial(toy, shape=(1, 6, 8))
    assert (
        sample_images(grey, range(3), tmp_path / "img", (1, 6, 8), 2, on_step=frame_writer(tmp_path / "sequence")) == 3
    )
    for i in range(3):
        *_, last = grey([i])
        for path in (image_path(tmp_path / "img", i), tmp_path / "sequence" / f"{i:06d}" / "000003.png"):
            image = Image.open(path)
            assert image.mode == "L"
            np.testing.assert_array_equal(np.asarray(image), to_uint8(last)[0, 0])
    assert sample_images(grey, range(3), tmp_path / "img", (1, 6, 8), 2) == 0


def test_images_of_other_channels_are_refused_before_anything_is_sampled(tmp_path):
    with pytest.raises(UserError, match="images of 4 channels cannot be written"):
        sample_images(toy, [0], tmp_path, (4, 8, 8), 1)


def test_frames_of_every_step(undisturbed, tmp_path):
    frames = tmp_path / "sequence"
    (frames / "000001").mkdir(parents=True)
    (frames / "000001" / f"000000.png.4711{atomic.PARTIAL}").write_bytes(b"half")
    sample_images(toy, range(3), tmp_path / "img", SHAPE, 2, on_step=frame_writer(frames))
    for i in range(3):
        steps = list(toy([i]))
        kept = files(frames / f"{i:06d}")
        assert sorted(kept) == [f"{k:06d}.png" for k in range(4)]
        for k, x in enumerate(steps):
            pixels = np.asarray(Image.open(io.BytesIO(kept[f"{k:06d}.png"]))).transpose(2, 0, 1)
            np.testing.assert_array_equal(pixels, to_uint8(x)[0])
        assert kept["000003.png"] == (undisturbed / f"{i:06d}.png").read_bytes()


# A killed process. The disk of the child is slow, so that kills hit while a file is being written.

BIG = (3, 24, 24)
COUNT = 24


def _slow_write_bytes(path: Path, data: bytes) -> None:
    with path.open("wb", buffering=0) as file:
        for start in range(0, len(data), 500):
            file.write(data[start : start + 500])
            time.sleep(0.001)


def whole_run(path: Path, slow: bool) -> None:
    if slow:
        tqdm.set_lock(threading.RLock())  # not one of several processes, which kills would leak
        Path.write_bytes = _slow_write_bytes
    with RunFolder.open(path) as run:
        run.record_config({"seed": SEED})
        sample = partial(toy, shape=BIG, slow=0.002 if slow else 0)
        sample_images(sample, range(COUNT), run.image_dir, BIG, 5)


def test_killed_at_any_moment_the_same_run_ends_the_same(tmp_path):
    whole_run(tmp_path / "undisturbed", slow=False)
    wanted = files(tmp_path / "undisturbed" / "img")
    context = forkserver()
    rng = random.Random(0)
    disturbed = tmp_path / "disturbed"
    kills = 0
    while True:
        run = context.Process(target=whole_run, args=(disturbed, True))
        run.start()
        _wait_for_a_change(disturbed / "img", run)
        run.join(rng.uniform(0, 0.03 * (kills + 1)))  # ever later, so that it ends on a slow machine too
        run.kill()
        run.join()
        partials = list((disturbed / "img").glob(f"*{atomic.PARTIAL}"))
        assert len(partials) <= 1, "those of earlier kills should be gone"
        found = {p.name: p.read_bytes() for p in (disturbed / "img").glob("*.png")}
        assert found.items() <= wanted.items()
        if run.exitcode == 0:
            break
        kills += 1
        if kills == 2 and not partials:  # whether a kill comes in the middle of a write is chance
            (disturbed / "img" / f"000000.png.x{atomic.PARTIAL}").write_bytes(b"half an image")
    assert kills >= 3, "the kills came too late to test anything"
    assert files(disturbed / "img") == wanted


def _wait_for_a_change(folder: Path, process) -> None:
    """Until the child has written something new, or has ended."""
    listing = partial(os.listdir, folder) if folder.exists() else list
    before = set(listing())
    while process.is_alive() and (not folder.exists() or set(os.listdir(folder)) <= before):
        time.sleep(0.002)
