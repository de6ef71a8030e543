"""The Inception network of FID, as torch-fidelity converted it from TensorFlow, with the spatial features of sFID."""

import io
from pathlib import Path

import torch
from torch import Tensor

from qdiff.errors import UserError
from qdiff.evaluation.feature_network import Features, Identity
from qdiff.files.digest import file_digest
from qdiff.files.download import fetch, pin_of
from qdiff.files.state_dicts import largest, read_state_dicts

PUBLISHED = "inception"  # in qdiff/files/published.json
LAYERS = ("2048", "logits_unbiased")
SPATIAL_CHANNELS = 7  # of TensorFlow's `mixed_6/conv`, as ADM's evaluator takes them
SPATIAL = 17 * 17 * SPATIAL_CHANNELS  # 2023


class Inception:
    """A `FeatureNetwork`: Inception v3 of 2015-12-05.

    Images of any size are resized to 299 x 299 as TensorFlow 1 does it, bilinear without antialiasing. Vectors are the
    2,048 outputs of the last pooling, logits are without bias, and spatial features are the first seven channels of the
    17 x 17 map after the 1 x 1 convolution of the block that TensorFlow calls `mixed_6` (Nash et al. 2021, as ADM
    computes sFID).

    Args:
        path: the weights that torch-fidelity published, or others of the same layout.
        device: where to compute.

    Raises:
        UserError: the file is missing, damaged, or of another network.
    """

    def __init__(self, path: Path, device: torch.device):
        sha256 = file_digest(path)
        standard = sha256 == pin_of(PUBLISHED).value
        name = "Inception" if standard else f"Inception-weights-{sha256[:8]}"
        self.identity = Identity(name, sha256, 2048, 1008, SPATIAL, standard)
        self._device = device
        self._network = _load(path).to(device)
        self._map = torch.empty(0)
        self._network.get_submodule("Mixed_6d.branch1x1").register_forward_hook(self._keep)

    def _keep(self, module: torch.nn.Module, args: tuple, output: Tensor) -> None:
        self._map = output[:, :SPATIAL_CHANNELS]

    @torch.no_grad()
    def extract(self, images: Tensor) -> Features:
        """Compute the features of images (B, 3, H, W), uint8, in float32."""
        vectors, logits = self._network(images.to(self._device))
        spatial = self._map.permute(0, 2, 3, 1).flatten(1)  # TensorFlow's order, in which ADM's statistics are
        return Features(vectors.cpu(), logits.cpu(), spatial.cpu())


def load_inception(path: Path | None, device: torch.device) -> Inception:
    """Load the Inception network of FID.

    Args:
        path: its weights; None downloads the published ones once, and verifies them.
        device: where to compute.

    Raises:
        UserError: as `Inception`, or the download fails.
    """
    return Inception(fetch(PUBLISHED, flag="--inception") if path is None else path, device)


def _load(path: Path) -> torch.nn.Module:
    """Return the network. Its constructor would unpickle any object, so it gets tensors that were read safely."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    weights = io.BytesIO()
    torch.save(dict(largest(read_state_dicts(path)).tensors), weights)
    weights.seek(0)
    try:
        return FeatureExtractorInceptionV3("inception", list(LAYERS), feature_extractor_weights_path=weights)
    except RuntimeError as e:  # load_state_dict
        raise UserError(
            f"'{path}' does not hold the weights of FID's Inception network: give --inception the file "
            "weights-inception-2015-12-05-6726825d.pth of torch-fidelity"
        ) from e
