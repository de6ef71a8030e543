"""First stages: autoencoders between images and the latents on which diffusion runs."""

from collections.abc import Mapping

from torch import Tensor, nn

from ldm.modules.diffusionmodules.model import AutoencoderSettings, Decoder, Encoder
from ldm.modules.distributions.distributions import DiagonalGaussianDistribution
from ldm.modules.vector_quantizer import VectorQuantizer
from ldm.published import ENCODER_AND_DECODER
from ldm.util import construct


def _settings(ddconfig: Mapping, double_z: bool) -> AutoencoderSettings:
    settings = construct(AutoencoderSettings, ddconfig, name="ddconfig", others=ENCODER_AND_DECODER)
    if settings.double_z != double_z:
        raise ValueError(f"ddconfig: double_z must be {double_z} here")
    return settings


class AutoencoderKL(nn.Module):
    """Variational autoencoder (Rombach et al. 2022, appendix G).

    Attributes:
        factor: edge of an image divided by that of its latent.
        out_channels: channels of a decoded image.

    Args:
        ddconfig: fields of `AutoencoderSettings`, with `double_z` true.
        embed_dim: channels of the latents on which diffusion runs.

    Raises:
        ValueError: `ddconfig` lacks a field, has an unknown one, or `double_z` is false.
    """

    def __init__(self, ddconfig: Mapping, embed_dim: int):
        super().__init__()
        settings = _settings(ddconfig, double_z=True)
        self.factor, self.out_channels = settings.factor, settings.out_ch
        self.encoder = Encoder(settings)
        self.decoder = Decoder(settings)
        self.quant_conv = nn.Conv2d(2 * settings.z_channels, 2 * embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, settings.z_channels, 1)

    def encode(self, x: Tensor) -> DiagonalGaussianDistribution:
        """Encode images x in -1..1, (B, in_channels, H, W), to the posterior of their latents, (B, embed_dim, h, w)."""
        return DiagonalGaussianDistribution(self.quant_conv(self.encoder(x)))

    def decode(self, z: Tensor) -> Tensor:
        """Decode latents z, (B, embed_dim, h, w), to images, (B, out_ch, H, W), about -1..1."""
        return self.decoder(self.post_quant_conv(z))


class VQModelInterface(nn.Module):
    """Vector-quantized autoencoder whose latents are quantized on decoding, so that diffusion runs on unquantized ones.

    Attributes:
        factor: edge of an image divided by that of its latent.
        out_channels: channels of a decoded image.

    Args:
        embed_dim: channels of the latents on which diffusion runs, and width of the codebook.
        ddconfig: fields of `AutoencoderSettings`, with `double_z` false.
        n_embed: entries of the codebook.

    Raises:
        ValueError: `ddconfig` lacks a field, has an unknown one, or `double_z` is true.
    """

    def __init__(self, embed_dim: int, ddconfig: Mapping, n_embed: int):
        super().__init__()
        settings = _settings(ddconfig, double_z=False)
        self.factor, self.out_channels = settings.factor, settings.out_ch
        self.encoder = Encoder(settings)
        self.decoder = Decoder(settings)
        self.quantize = VectorQuantizer(n_embed, embed_dim)
        self.quant_conv = nn.Conv2d(settings.z_channels, embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, settings.z_channels, 1)

    def encode(self, x: Tensor) -> Tensor:
        """Encode images x in -1..1, (B, in_channels, H, W), to latents before quantization, (B, embed_dim, h, w)."""
        return self.quant_conv(self.encoder(x))

    def decode(self, z: Tensor) -> Tensor:
        """Quantize and decode latents z, (B, embed_dim, h, w), to images, (B, out_ch, H, W), about -1..1."""
        return self.decoder(self.post_quant_conv(self.quantize(z)))


class IdentityFirstStage(nn.Module):
    """First stage of diffusion in pixel space: images are their own latents."""

    factor = 1

    def encode(self, x: Tensor) -> Tensor:
        """Return the images x, (B, C, H, W), unchanged."""
        return x

    def decode(self, z: Tensor) -> Tensor:
        """Return the images z, (B, C, H, W), unchanged."""
        return z
