from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ldm.models.autoencoder import AutoencoderKL, IdentityFirstStage, VQModelInterface
from ldm.modules.encoders.modules import ClassEmbedder, FrozenCLIPEmbedder
from qdiff.adapters.ldm.models import class_conditioner_of, image_shape, kl_first_stage_of, text_conditioner_of
from tests.ldm.tiny_text import ENCODER, TOKENS

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


@pytest.mark.parametrize(
    ("conditioner", "has_classes", "has_texts"),
    [
        (lambda: None, False, False),
        (lambda: nn.Linear(2, 2), False, False),
        (lambda: ClassEmbedder(4, n_classes=3), True, False),
        (lambda: FrozenCLIPEmbedder(max_length=TOKENS, config=ENCODER), False, True),
    ],
)
def test_the_kind_of_a_conditioner(conditioner, has_classes, has_texts):
    latent = SimpleNamespace(cond_stage_model=conditioner())
    assert class_conditioner_of(latent) is (latent.cond_stage_model if has_classes else None)
    assert text_conditioner_of(latent) is (latent.cond_stage_model if has_texts else None)


def test_the_kind_of_a_first_stage():
    kl = AutoencoderKL({**GREY, "double_z": True}, 2)
    assert kl_first_stage_of(SimpleNamespace(first_stage_model=kl)) is kl
    assert kl_first_stage_of(SimpleNamespace(first_stage_model=IdentityFirstStage())) is None
