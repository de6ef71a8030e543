"""A tiny pixel-space model as a user has it: configuration and weights in files, and the script that samples it."""

import contextlib
import io
import runpy
import sys
from pathlib import Path
from unittest import mock

from omegaconf import DictConfig, OmegaConf
from safetensors.torch import save_file

from ddim.models.diffusion import Model
from qdiff.cli.parser import run
from tests.command_line import Ended
from tests.golden_networks import golden_state_dict, load_case

SCRIPT = Path(__file__).parents[1] / "scripts" / "sample_diffusion_ddim.py"


def tiny_config() -> DictConfig:
    """8 x 8 pictures, 32 and 64 channels, attention at 4 x 4, dropout in training; 18 blocks, 4 of them split.

    A short noise schedule keeps the samples of random weights within the range of pictures.
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
    out, err, status = io.StringIO(), io.StringIO(), 0
    with (
        mock.patch.object(sys, "argv", [str(SCRIPT), *map(str, argv)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            run(runpy.run_path(str(SCRIPT))["main"])
        except SystemExit as end:
            status = end.code or 0
    return Ended(status, out.getvalue(), err.getvalue())
