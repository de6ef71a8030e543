"""Autoencoders, their codebook and their posterior."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from diffusion.blocks import Downsample, Upsample
from ldm.models.autoencoder import AutoencoderKL, IdentityFirstStage, VQModelInterface
from ldm.modules.diffusionmodules.first_stage_blocks import AttnBlock, ResnetBlock
from ldm.modules.distributions.distributions import DiagonalGaussianDistribution
from ldm.modules.encoders.modules import ClassEmbedder
from ldm.modules.vector_quantizer import VectorQuantizer
from tests.ldm.drawn import draw, drawn

DDCONFIG = {
    "ch": 32,
    "ch_mult": [1, 2, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [],
    "in_channels": 3,
    "out_ch": 3,
    "resolution": 16,
    "z_channels": 4,
    "double_z": False,
}
KL, VQ = DDCONFIG | {"double_z": True}, DDCONFIG


# ---- autoencoders


@torch.no_grad()
def test_latents_have_the_channels_and_the_size_of_the_configuration():
    kl, vq = AutoencoderKL(KL, embed_dim=5), VQModelInterface(3, VQ, n_embed=7)
    images = draw(2, 3, 16, 24)
    assert kl.encode(images).mode().shape == (2, 5, 4, 6)
    assert vq.encode(images).shape == (2, 3, 4, 6)
    assert kl.decode(draw(2, 5, 4, 6)).shape == vq.decode(draw(2, 3, 4, 6)).shape == images.shape


@torch.no_grad()
def test_vector_quantized_latents_are_quantized_when_they_are_decoded():
    model = drawn(VQModelInterface(3, VQ, n_embed=7))
    z = draw(1, 3, 4, 4)
    codes = model.quantize(z)
    assert torch.dist(codes, z) > 0.1
    assert torch.equal(model.decode(z), model.decode(codes))
    assert torch.equal(model.decode(z), model.decoder(model.post_quant_conv(codes)))
    encoded = model.encode(draw(1, 3, 16, 16))
    assert torch.dist(encoded, model.quantize(encoded)) > 0.1


@torch.no_grad()
def test_attention_stands_at_its_resolution():
    model = AutoencoderKL(KL | {"attn_resolutions": [8]}, embed_dim=4)
    assert [len(level.attn) for level in model.encoder.down] == [0, 1, 0]
    assert [len(level.attn) for level in model.decoder.up] == [0, 2, 0]
    x = draw(1, 3, 16, 16)
    assert torch.dist(model.encode(x).mode(), model.encode(x.flip(2)).mode()) > 0


def test_pixels_are_their_own_latents():
    x = draw(1, 3, 4, 4)
    assert torch.equal(IdentityFirstStage().decode(IdentityFirstStage().encode(x)), x)


@pytest.mark.parametrize(
    ("ddconfig", "named"),
    [
        (VQ, "double_z must be True"),
        (KL | {"attn_resolution": [8]}, "'attn_resolution': did you mean 'attn_resolutions'"),
        ({k: v for k, v in KL.items() if k != "z_channels"}, "'z_channels' is missing"),
    ],
)
def test_impossible_settings_are_refused(ddconfig, named):
    with pytest.raises(ValueError, match=named):
        AutoencoderKL(ddconfig, embed_dim=4)
    with pytest.raises(ValueError, match="double_z must be False"):
        VQModelInterface(3, KL, n_embed=7)


# ---- their blocks


@torch.no_grad()
def test_attention_block_is_softmax_attention_over_pixels():
    block = drawn(AttnBlock(32))
    x = draw(2, 32, 3, 5)
    h = F.group_norm(x, 32, block.norm.weight, block.norm.bias, eps=1e-6)
    q, k, v = (layer(h).flatten(2) for layer in (block.q, block.k, block.v))
    w = (torch.einsum("bci,bcj->bij", q, k) / 32**0.5).softmax(dim=2)
    expected = x + block.proj_out(torch.einsum("bij,bcj->bci", w, v).unflatten(2, (3, 5)))
    torch.testing.assert_close(block(x), expected)


class Largest(TorchDispatchMode):
    """Keeps the number of elements of the largest tensor that an operation returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **kwargs or {})
        if isinstance(output, torch.Tensor):
            self.numel = max(self.numel, output.numel())
        return output


@torch.no_grad()
def test_attention_block_never_holds_all_scores():
    with Largest() as largest:
        AttnBlock(32)(draw(1, 32, 16, 16))
    assert largest.numel == 32 * 256  # the scores would be 256 * 256


@torch.no_grad()
@pytest.mark.parametrize("width", [32, 64])
def test_residual_block(width):
    block = drawn(ResnetBlock(32, width, dropout=0.5))
    x = draw(2, 32, 4, 4)
    h = block.conv1(F.silu(F.group_norm(x, 32, block.norm1.weight, block.norm1.bias, eps=1e-6)))
    h = block.conv2(F.silu(F.group_norm(h, 32, block.norm2.weight, block.norm2.bias, eps=1e-6)))
    torch.testing.assert_close(block(x), h + (x if width == 32 else block.nin_shortcut(x)))


@torch.no_grad()
def test_resampling():
    x = torch.arange(16.0).view(1, 1, 4, 4)
    down = Downsample(1, with_conv=True)
    padded = torch.zeros(1, 1, 5, 5)
    padded[..., :4, :4] = x  # on the right and below only
    torch.testing.assert_close(down(x), F.conv2d(padded, down.conv.weight, down.conv.bias, stride=2))
    assert Downsample(1, with_conv=False)(x).tolist() == [[[[2.5, 4.5], [10.5, 12.5]]]]
    assert torch.equal(Upsample(1, with_conv=False)(x)[..., 1::2, ::2], x)


# ---- codebook


@torch.no_grad()
def test_nearest_entry_is_that_of_brute_force():
    quantizer = drawn(VectorQuantizer(50, 3))
    z = draw(2, 3, 6, 5, seed=9)
    distance = (z[:, None] - quantizer.embedding.weight[:, :, None, None]).square().sum(dim=2)  # (B, K, H, W)
    assert torch.equal(quantizer.indices(z), distance.argmin(dim=1))
    nearest = distance.argmin(dim=1)[1, 4, 2]
    assert torch.equal(quantizer(z)[1, :, 4, 2], quantizer.embedding.weight[nearest])
    assert torch.equal(quantizer(quantizer(z)), quantizer(z))


def test_gradients_reach_the_codebook():
    quantizer = VectorQuantizer(5, 3)
    quantizer(draw(1, 3, 2, 2)).sum().backward()
    assert quantizer.embedding.weight.grad.sum() == 12  # four pixels of three channels


def test_untrained_entries_are_close_together():
    assert VectorQuantizer(1000, 3).embedding.weight.abs().max() < 0.01


# ---- posterior


def test_posterior_has_the_mean_and_deviation_of_its_parameters():
    mean, deviation = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0])
    parameters = torch.cat([mean, 2 * deviation.log()]).view(1, 4, 1).expand(1, 4, 40000)
    posterior = DiagonalGaussianDistribution(parameters)
    assert torch.equal(posterior.mode(), parameters[:, :2])
    sample = posterior.sample(torch.Generator().manual_seed(0))[0]
    torch.testing.assert_close(sample.mean(dim=1), mean, atol=0.06, rtol=0)
    torch.testing.assert_close(sample.std(dim=1), deviation, atol=0, rtol=0.02)
    assert torch.equal(sample, posterior.sample(torch.Generator().manual_seed(0))[0])
    assert not torch.equal(sample, posterior.sample(torch.Generator().manual_seed(1))[0])


def test_log_variance_is_clipped():
    parameters = torch.tensor([0.0, 0.0, 100.0, -100.0]).view(1, 4)
    assert DiagonalGaussianDistribution(parameters).logvar.tolist() == [[20.0, -30.0]]


# ---- conditioner


def test_class_is_a_context_of_one_token():
    embedder = ClassEmbedder(4, n_classes=6, key="label")
    context = embedder({"label": torch.tensor([5, 0])})
    assert torch.equal(context, embedder.embedding.weight[[5, 0]][:, None])


@pytest.mark.parametrize(
    ("n_classes", "given", "null"),
    [
        (1000, {}, None),
        (1001, {}, 1000),
        (10, {}, None),
        (10, {"null_class": 3}, 3),
        (1001, {"null_class": None}, None),
    ],
)
def test_which_class_stands_for_none(n_classes, given, null):
    embedder = ClassEmbedder(4, n_classes, **given)
    assert embedder.null_class == null
    assert embedder.classes == sorted({*range(n_classes)} - {null})


@pytest.mark.parametrize(("n_classes", "null"), [(10, 10), (10, -1), (10, True), (10, 2.0), (10, "last"), (1, 0)])
def test_a_null_class_that_cannot_be(n_classes, null):
    with pytest.raises(ValueError, match=r"null_class is|only class"):
        ClassEmbedder(4, n_classes, null_class=null)
