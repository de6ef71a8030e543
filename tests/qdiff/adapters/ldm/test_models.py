from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ldm.models.autoencoder import AutoencoderKL, IdentityFirstStage, VQModelInterface
from qdiff.adapters.ldm.models import image_shape

SETTINGS = {"ch": 32, "ch_mult": [1, 1, 1], "num_res_blocks": 1, "attn_resolutions": [], "resolution": 16}
COLOUR = {**SETTINGS, "in_channels": 3, "out_ch": 3, "z_channels": 4}
GREY = {**SETTINGS, "in_channels": 1, "out_ch": 1, "z_channels": 4}


@pytest.mark.parametrize(
    "first",
    [
        lambda: AutoencoderKL({**COLOUR, "double_z": True}, 2),
        lambda: AutoencoderKL({**GREY, "double_z": True}, 2),
        lambda: VQModelInterface(2, {**GREY, "double_z": False}, 8),
        IdentityFirstStage,
    ],
)
def test_the_shape_of_an_image_is_that_of_what_is_decoded(first):
    with torch.device("meta"):
        stage: nn.Module = first()
    latent = (2, 4, 6)
    decoded = stage.decode(torch.zeros(1, *latent, device="meta"))
    assert image_shape(SimpleNamespace(first_stage_model=stage), latent) == decoded.shape[1:]
