import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import TensorDataset

from qdiff.training.trainer import ema_weights, fit

LR, DECAY, STEPS = 0.1, 0.75, 7


class Slide(pl.LightningModule):
    """Its weight goes down by LR every step, whatever the data; it may break down at a step."""

    def __init__(self, breaks_at: int | None = None):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([3.0]))
        self.breaks_at = breaks_at

    def training_step(self, batch, batch_idx):
        if self.global_step == self.breaks_at:
            raise RuntimeError("power cut")
        return self.w.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=LR)


def train(module, folder, steps=STEPS, save_every=2):
    data = TensorDataset(torch.zeros(8, 1))
    options = {"batch_size": 2, "ema_decay": DECAY, "save_every": save_every, "grad_clip": 0.0, "accelerator": "cpu"}
    return fit(module, data, folder, steps=steps, **options)


def expected(steps: int) -> float:
    """Compute the average, which starts at the weight after the first step."""
    average = 3.0 - LR
    for k in range(2, steps + 1):
        average = DECAY * average + (1 - DECAY) * (3.0 - LR * k)
    return average


def test_weights_are_exponential_averages(tmp_path):
    weights = train(Slide(), tmp_path)
    assert weights.keys() == {"w"}
    assert weights["w"].item() == pytest.approx(expected(STEPS))
    assert torch.equal(ema_weights(tmp_path / "last.ckpt")["w"], weights["w"])


@pytest.mark.parametrize("breaks_at", [1, 4, 5])
def test_an_interrupted_training_goes_on_where_its_checkpoint_is(tmp_path, breaks_at):
    with pytest.raises(RuntimeError, match="power cut"):
        train(Slide(breaks_at), tmp_path)
    saved = breaks_at // 2 * 2
    assert (tmp_path / "last.ckpt").exists() == (saved > 0)
    if saved:
        assert ema_weights(tmp_path / "last.ckpt")["w"].item() == pytest.approx(expected(saved))
    resumed = Slide()
    assert train(resumed, tmp_path)["w"].item() == pytest.approx(expected(STEPS))


def test_a_finished_training_is_not_repeated(tmp_path):
    first = train(Slide(), tmp_path)
    again = train(Slide(breaks_at=STEPS), tmp_path)
    assert torch.equal(again["w"], first["w"])
