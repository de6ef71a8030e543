from pathlib import Path

import pytest
from omegaconf import OmegaConf

from qdiff.config.networks import is_latent, load_network, network_shapes, plain
from qdiff.config.schema import read_yaml
from qdiff.errors import UserError

ROOT = Path(__file__).parents[3]


def test_recommended_settings_of_sampling_are_not_part_of_what_is_kept():
    """A file or a run folder is the same with and without them."""
    config = {"model": {"ch": 3}, "sampling": {"batch_size": 4, "last_only": True}}
    recommended = {"sampler": "ddim", "steps": 50, "skip_type": "quad", "eta": 0.5, "scale": 3.0}
    assert plain(OmegaConf.create(config)) == config
    assert plain(OmegaConf.create({**config, "sampling": {**config["sampling"], **recommended}})) == config
    assert plain(OmegaConf.create({"model": 1, "sampling": recommended})) == {"model": 1}


def test_references_are_resolved():
    assert plain(OmegaConf.create({"a": 2, "b": "${a}"})) == {"a": 2, "b": 2}


def test_the_kind_of_a_configuration(tmp_path):
    latent, pixel = tmp_path / "latent.yaml", tmp_path / "pixel.yml"
    latent.write_text("model: {target: ldm.models.diffusion.ddpm.LatentDiffusion}")
    pixel.write_text("model: {type: simple}")
    assert is_latent(latent) and not is_latent(pixel)


def test_the_network_of_the_bundled_configurations():
    config, network = load_network(ROOT / "configs" / "emoji32.yml")
    assert sum(x.numel() for x in network.parameters()) == 3_231_619
    assert config.sampling.steps == 50


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("cifar10.yml", [(1, 3, 32, 32), (1,)]),
        ("lsun_churches-ldm-kl-8.yaml", [(1, 4, 32, 32), (1,)]),
        ("cin256-v2.yaml", [(1, 3, 64, 64), (1,), (1, 1, 512)]),
        ("v1-inference.yaml", [(1, 4, 64, 64), (1,), (1, 77, 768)]),
    ],
)
def test_a_network_without_values_and_a_call_of_it(name, shapes):
    path = next((ROOT / "configs").rglob(name))
    network, call = network_shapes(read_yaml(path), path)
    assert [tuple(x.shape) for x in call.args] == shapes and not call.kwargs
    assert all(x.is_meta for x in (*network.parameters(), *network.buffers(), *call.tensors))
    assert call(network).shape == shapes[0] and not network.training


def test_configurations_without_a_network_are_refused(tmp_path):
    config = read_yaml(ROOT / "configs" / "latent-diffusion" / "cin256-v2.yaml")
    config.model.params.cond_stage_config = {"target": "torch.nn.Identity"}
    with pytest.raises(UserError, match=r"'x.yaml': .*Identity.* not available.*: give the configuration of another"):
        network_shapes(config, Path("x.yaml"))
    with pytest.raises(UserError, match=r"'x.yaml' refers to a value that it lacks \(.*other.*\): correct it"):
        network_shapes(OmegaConf.create({"model": "${other}"}), Path("x.yaml"))
    with pytest.raises(UserError, match=r"'x.yaml' has no section 'data'"):
        network_shapes(OmegaConf.create({"model": {"type": "simple"}}), Path("x.yaml"))
    with pytest.raises(UserError, match=r"'x.yaml' lacks a value"):
        network_shapes(OmegaConf.create({"model": {"target": "ldm.x", "a": "???"}}), Path("x.yaml"))
