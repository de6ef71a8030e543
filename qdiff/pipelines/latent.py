"""Base of the pipelines of latent models: the model, its weights and its guided network."""

import copy
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, TypeVar, cast

import torch
from torch import Tensor, nn
from typing_extensions import Self

from diffusion.steps import Model
from qdiff.adapters.ldm.checkpoints import PublishedKeys, schedule
from qdiff.adapters.ldm.models import Condition, build, decode, example, guided, image_shape
from qdiff.adapters.ldm.samplers import DDIM, DDPM, PLMS, DPMSolver
from qdiff.calls import Call
from qdiff.checkpoints.weights import load_weights
from qdiff.config.latent import build_latent, load_latent_config
from qdiff.files.images import Shape
from qdiff.pipelines.conditions import Conditions
from qdiff.pipelines.pipeline import Pipeline
from qdiff.pipelines.precision import precision_of, resolved
from qdiff.pipelines.settings import GuidedSampling, LatentModel

UNET = ("model.", "model_ema.")  # prefixes of its keys

AnyModule = TypeVar("AnyModule", bound=nn.Module)
GuidedT = TypeVar("GuidedT", bound=GuidedSampling)


class LatentPipeline(Pipeline[GuidedT]):
    """A latent model with its sampler.

    Args:
        model: files, device and precision of the model.
        sampling: settings of sampling.

    Attributes:
        latent: the model, on the meta device until it is loaded.
        stride: height and width of a latent must be multiples of it.
        conditions: conditions of the images.

    Raises:
        UserError: the configuration is invalid, or the settings do not fit the model.
    """

    samplers: ClassVar[Mapping[str, type]] = {"ddim": DDIM, "plms": PLMS, "dpm": DPMSolver, "ddpm": DDPM}

    conditions: Conditions

    def __init__(self, model: LatentModel, sampling: GuidedT):
        super().__init__(model.device)
        self.model, self.source = model, model.config
        self.config = load_latent_config(self.source, model.overrides)
        self.latent = build_latent(self.config, self.source, empty=True).eval().requires_grad_(False)
        self.stride = cast(int, self.network.stride)
        self._abar = schedule(self.config)["alphas_cumprod"]  # which the weights must agree with
        self._configure(sampling)
        self.precision = resolved(model.precision, self.device)
        self._context = precision_of(self.precision, self.device)

    def _configure(self, sampling: GuidedT) -> None:
        super()._configure(sampling)
        self.cfg_copies = 2 if sampling.scale != 1 else 1
        self.conditions = self._conditions()

    @abstractmethod
    def _conditions(self) -> Conditions:
        """Return the conditions of images under the current settings. Raises UserError for impossible ones."""

    @property
    def called(self) -> nn.Module:
        return self.latent.model.diffusion_model

    @property
    def module(self) -> nn.Module:
        return self.latent

    def with_network(self, network: nn.Module) -> Self:
        other = copy.copy(self)
        other.latent = _shallow(self.latent)
        other.latent.model = _shallow(self.latent.model)
        other.latent.model.diffusion_model = network
        other.correction = other.execution = None  # which belong to the network
        return other

    @property
    def abar(self) -> Tensor:
        return self._abar

    @property
    def latent_shape(self) -> Shape:
        return self.latent.channels, self.latent.image_size, self.latent.image_size

    @property
    def image_shape(self) -> Shape:
        return image_shape(self.latent, self.latent_shape)

    def load(self, *, network: bool = True) -> Mapping[str, Tensor]:
        skipped = () if network else UNET
        layout = PublishedKeys(self.latent, self.config, self.source)
        averages = self.latent.model_ema is not None
        load_weights(self.latent, self.model.weights, layout=layout, averages=averages, skip=skipped)
        if not network:
            self.latent.model_ema = None
            self.network.to_empty(device="cpu")  # takes no memory until it is written to
        self._to_device(network)
        return {key: x for key, x in self.latent.state_dict().items() if not key.startswith(skipped)}

    def init_random(self) -> None:
        self.latent.load_state_dict(build(self.config).state_dict(), assign=True)
        self._to_device(network=True)

    def _to_device(self, network: bool) -> None:
        """Adopt the averages and move the model; without `network`, all but the UNet, whose weights come later."""
        self.latent.adopt_ema()
        unet = self.network
        if not network:
            self.latent.model.diffusion_model = nn.Identity()
        self.latent.to(self.device)
        self.latent.model.diffusion_model = unet

    def model_for(self, indices: Sequence[int]) -> Model:
        return self._guided(self.conditions.of(indices), len(indices))

    def calibration_model_for(self, indices: Sequence[int]) -> Model:
        return self._guided(self.conditions.for_calibration(indices), len(indices))

    def _guided(self, c: Tensor | None, count: int) -> Model:
        uc = self.conditions.null(count) if self.cfg_copies > 1 else None
        return guided(self.apply_model, c, uc, self.sampling.scale)

    def apply_model(self, x: Tensor, t: Tensor, c: Condition) -> Tensor:
        """Predict the noise without guidance, in float32; see `LatentDiffusion.apply_model` for the shapes."""
        with self._context:
            return self.latent.apply_model(x, t, c).float()

    def example(self, batch_size: int) -> Call:
        x, _ = self.noise(range(batch_size))
        c = self.conditions.for_calibration([0])
        condition = () if c is None else (c.expand(batch_size, -1, -1),)
        return Call((x, self._latest_timestep(batch_size), *condition))

    def shapes(self) -> Call:
        _, t, *condition = example(self.latent)
        return Call((torch.zeros(1, *self.latent_shape), t, *condition))

    def decode(self, x: Tensor) -> Tensor:
        with self._context:
            return decode(self.latent, x).float()

    @property
    def columns(self) -> int | None:
        return self.conditions.columns

    def image_text(self, indices: Sequence[int]) -> Mapping[str, str]:
        return self.conditions.text(indices)

    def __str__(self) -> str:
        return f"{super().__str__()}, scale {self.sampling.scale}"


def _shallow(module: AnyModule) -> AnyModule:
    """Copy a module so that children of the copy can be replaced; children, parameters and buffers are shared."""
    clone = copy.copy(module)
    clone._modules = dict(module._modules)
    return clone
