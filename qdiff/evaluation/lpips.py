"""LPIPS with AlexNet (Zhang et al. 2018), from torchmetrics; its AlexNet weights are read safely."""

from pathlib import Path

import torch
from torch import Tensor

from qdiff.errors import UserError
from qdiff.evaluation.measures import Metric
from qdiff.evaluation.paired import MeanOver
from qdiff.files.digest import file_digest
from qdiff.files.state_dicts import largest, read_state_dicts

FILE = "alexnet-owt-7be5be79.pth"
URL = f"https://download.pytorch.org/models/{FILE}"
ALEXNET_PIXELS = 31  # what its first layers need to leave a pixel
SHA256 = "7be5be79"  # how it begins, as torchvision's file name states and torch.hub checks it

LPIPS = Metric(
    "lpips",
    "LPIPS to FP",
    "",
    "learned perceptual distance (AlexNet) to the FP image of the same seed, averaged over the images; lower is closer",
    ".4f",
    by="torchmetrics",
)


def cached_alexnet() -> Path | None:
    """Return the weights that torchvision downloaded earlier; None if it did not."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / FILE
    return path if path.is_file() else None


def lpips_to_fp(path: Path, device: torch.device) -> MeanOver:
    """Return the measure of LPIPS.

    Args:
        path: torchvision's AlexNet weights, `FILE`; the linear layers on top come with torchmetrics.
        device: where to compute.

    Raises:
        UserError: the file is missing, damaged, or another one.
    """
    if not file_digest(path).startswith(SHA256):
        raise UserError(f"'{path}' is not torchvision's {FILE}: get {URL}, and give it with --lpips FILE")
    network = _network(path).to(device)

    @torch.no_grad()
    def distance(images: Tensor, reference: Tensor) -> Tensor:
        pair = (x.to(device).expand(-1, 3, -1, -1) / 127.5 - 1 for x in (images, reference))
        return network(*pair).flatten().cpu()

    return MeanOver(LPIPS, distance)


def _network(path: Path) -> torch.nn.Module:
    from torchmetrics.functional.image.lpips import _NoTrainLpips

    network = _NoTrainLpips(net="alex", pnet_rand=True)
    given = largest(read_state_dicts(path)).tensors
    names = {name: f"features.{name.partition('.')[2]}" for name in network.net.state_dict()}  # without the slice
    network.net.load_state_dict({name: given[theirs] for name, theirs in names.items()})
    return network
