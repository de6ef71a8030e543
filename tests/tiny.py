"""A tiny pixel-space model as a user has it: configuration and weights in files, and the script that samples it."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from safetensors.torch import save_file

from ddim.models.diffusion import Model
from tests.command_line import SCRIPTS, Ended, script
from tests.golden_networks import golden_state_dict, load_case

SCRIPT = SCRIPTS / "sample_diffusion_ddim.py"


def tiny_config() -> DictConfig:
    """8 x 8 images, 32 and 64 channels, attention at 4 x 4, dropout in training; 18 blocks, 4 of them split.

    A short noise schedule keeps the samples of random weights within the range of images.
    """
    config = load_case("ddim_w4a8_split").settings.config
    config.data.image_size, config.model.attn_resolutions = 8, [4]
    config.diffusion.beta_end = 0.002
    return config


def tiny_network(config: DictConfig | None = None) -> Model:
    """A network with weights by the golden recipe, in evaluation mode."""
    model = Model(config or tiny_config()).eval()
    model.load_state_dict(golden_state_dict({key: x.shape for key, x in model.state_dict().items()}))
    return model


def write_tiny(folder: Path) -> Path:
    """Write tiny.yml and the weights that it names into `folder`; the path of the first."""
    config = tiny_config()
    save_file(tiny_network(config).state_dict(), folder / "tiny.safetensors")
    config.model.weights = "tiny.safetensors"
    OmegaConf.save(config, folder / "tiny.yml")
    return folder / "tiny.yml"


def sample_script(*argv: object) -> Ended:
    """Run `python scripts/sample_diffusion_ddim.py` with these words in this process, which has loaded torch."""
    return script(SCRIPT.name, *argv)
