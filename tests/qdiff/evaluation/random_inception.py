"""Inception with random weights in a file, as `--inception` takes it, because the published ones cannot be had here."""

import io
from pathlib import Path

import torch
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3


class _Drawing(FeatureExtractorInceptionV3):
    """Draws its weights, with which images give different features, instead of loading them."""

    def load_state_dict(self, state, *args, **kwargs):
        g = torch.Generator().manual_seed(0)
        for name, x in self.state_dict().items():
            if name.endswith("conv.weight"):
                x.normal_(0, (2 / x[0].numel()) ** 0.5, generator=g)
            elif name == "fc.weight":
                x.normal_(0, 0.05, generator=g)


def write_inception(path: Path) -> dict[str, Tensor]:
    """Write the weights as torch-fidelity publishes its own; return them."""
    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    state = _Drawing("drawing", ["2048"], feature_extractor_weights_path=empty).state_dict()
    torch.save(state, path)
    return state
