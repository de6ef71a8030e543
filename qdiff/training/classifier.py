"""Training of the classifier whose features compare images, see `qdiff.evaluation.features`."""

from pathlib import Path

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import Subset

from qdiff.evaluation.features import SIZE, FeatureNet
from qdiff.evaluation.image_sets import Stream
from qdiff.evaluation.reference import gathered
from qdiff.evaluation.statistics_file import write_statistics
from qdiff.files.atomic import replacing
from qdiff.files.images import to_uint8
from qdiff.training.images import ImageDataset
from qdiff.training.trainer import fit

BATCH = 256  # images whose features are computed at once
HELD_OUT = 0.1  # share of the names


class Classifier(pl.LightningModule):
    """Minimises cross-entropy with label smoothing 0.1, by AdamW with a learning rate of one cycle over `steps`.

    Args:
        model: images (B, 3, H, W) in [-1, 1] -> logits.
        lr: highest learning rate.
        steps: of the whole training.
    """

    def __init__(self, model: FeatureNet, *, lr: float, steps: int):
        super().__init__()
        self.model, self.lr, self.steps = model, lr, steps

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch: images (B, 3, H, W) in [-1, 1], and labels (B,)."""
        x, label = batch
        loss = F.cross_entropy(self.model(x), label, label_smoothing=0.1)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return the optimiser and its schedule."""
        adam = torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=0.05)
        rate = torch.optim.lr_scheduler.OneCycleLR(adam, max_lr=self.lr, total_steps=self.steps)
        return {"optimizer": adam, "lr_scheduler": {"scheduler": rate, "interval": "step"}}


def hold_out(names: list[str], seed: int) -> tuple[list[int], list[int]]:
    """Split images into indices to train on and indices to test on; images of one name stay together."""
    distinct = sorted(set(names))
    order = torch.randperm(len(distinct), generator=torch.Generator().manual_seed(seed)).tolist()
    tested = {distinct[i] for i in order[: round(HELD_OUT * len(distinct))]}
    return [i for i, name in enumerate(names) if name not in tested], [
        i for i, name in enumerate(names) if name in tested
    ]


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share, 0..1, of images (N, 3, H, W) in [-1, 1] whose label, (N,), has the largest logit."""
    return (model(images).argmax(1) == labels).float().mean().item()


def train(data_path: Path, run_dir: Path, out: Path, *, category: str, steps: int, lr: float, seed: int) -> float:
    """Train, then write `out/classifier.safetensors` and the statistics of `write_references`.

    Args:
        data_path: archive, see `ImageDataset`.
        run_dir: folder of the checkpoints.
        out: folder of the files.
        category: see `write_references`.
        steps: of the optimiser.
        lr: highest learning rate.
        seed: of the split, the initial weights and the order of images.

    Returns:
        accuracy on held-out images, 0..1.

    Raises:
        UserError: the archive cannot be read.
    """
    pl.seed_everything(seed)
    data = ImageDataset(data_path, SIZE, flip=True)
    trained, tested = hold_out(data.names, seed)
    classifier = Classifier(FeatureNet(len(data.classes)), lr=lr, steps=steps)
    weights = fit(
        classifier,
        Subset(data, trained),
        run_dir,
        steps=steps,
        batch_size=64,
        ema_decay=0.99,
        save_every=100,
        grad_clip=1.0,
    )
    classifier.load_state_dict(weights)
    model = classifier.model.eval().cpu()
    with replacing(out / "classifier.safetensors") as partial:
        save_file(model.state_dict(), partial)
    write_references(model, data_path, out, category)
    return accuracy(model, data.images[tested], data.labels[tested])


def write_references(model: FeatureNet, data_path: Path, out: Path, category: str) -> None:
    """Write feature statistics: `reference.safetensors` of one category, `reference_all.safetensors` of all images."""
    for name, categories in (("reference", [category]), ("reference_all", [])):
        images = to_uint8(ImageDataset(data_path, SIZE, categories).images)
        found = gathered(Stream([images], name, rounding="nearest"), model, features=False, size=BATCH)
        write_statistics(out / f"{name}.safetensors", found)
