"""First stages: autoencoders between images and the latents in which diffusion runs."""

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
        factor: pixels of an image for each pixel of its latent, along an edge.
        out_channels: of a decoded image.

    Args:
        ddconfig: fields of `AutoencoderSettings`, with `double_z`.
        embed_dim: channels of the latent that diffusion sees.

    Raises:
        ValueError: `ddconfig` lacks a field, has an unknown one, or is without `double_z`.
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
        """x: images in -1..1, (B, in_channels, H, W) -> the posterior of their latents (B, embed_dim, h, w)."""
        return DiagonalGaussianDistribution(self.quant_conv(self.encoder(x)))

    def decode(self, z: Tensor) -> Tensor:
        """z: (B, embed_dim, h, w) -> images (B, out_ch, H, W)."""
        return self.decoder(self.post_quant_conv(z))


class VQModelInterface(nn.Module):
    """Vector-quantized autoencoder as diffusion uses it: latents are quantized when they are decoded.

    Attributes:
        factor: pixels of an image for each pixel of its latent, along an edge.
        out_channels: of a decoded image.

    Args:
        embed_dim: channels of the latent that diffusion sees, and width of the codebook.
        ddconfig: fields of `AutoencoderSettings`, without `double_z`.
        n_embed: entries of the codebook.

    Raises:
        ValueError: `ddconfig` lacks a field, has an unknown one, or has `double_z`.
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
        """x: images in -1..1, (B, in_channels, H, W) -> latents before quantization, (B, embed_dim, h, w)."""
        return self.quant_conv(self.encoder(x))

    def decode(self, z: Tensor) -> Tensor:
        """z: latents as diffusion leaves them, (B, embed_dim, h, w) -> images (B, out_ch, H, W)."""
        return self.decoder(self.post_quant_conv(self.quantize(z)))


class IdentityFirstStage(nn.Module):
    """Diffusion in pixel space: images are their own latents."""

    factor = 1

    def encode(self, x: Tensor) -> Tensor:
        """`x` itself."""
        return x

    def decode(self, z: Tensor) -> Tensor:
        """`z` itself."""
        return z
