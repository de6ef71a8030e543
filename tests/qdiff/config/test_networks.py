from pathlib import Path

from omegaconf import OmegaConf

from qdiff.config.networks import is_latent, load_network, plain

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
