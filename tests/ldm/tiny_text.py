"""A small text-to-image model as a user has it: configuration, weights and tokenizer in a folder."""

from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.util import instantiate_from_config
from qdiff.files.tokenizer import load_tokenizer
from tests.golden_networks import golden_state_dict, load_case
from tests.ldm.tiny import LOW_ATTENTION
from tests.tokenizer import END, START, VOCABULARY, write

TOKENS = 7
ENCODER = {
    "vocab_size": len(VOCABULARY),
    "max_position_embeddings": TOKENS,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "hidden_act": "quick_gelu",
    "bos_token_id": START,
    "eos_token_id": END,
}


def text_config() -> DictConfig:
    """The golden case of Stable Diffusion with a small text encoder, and with attention on the lower level alone."""
    config = load_case("sd_w4a8_split_sm16").settings.config
    config.model.params.unet_config.params.update(LOW_ATTENTION)
    config.model.params.cond_stage_config = {
        "target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder",
        "params": {"max_length": TOKENS, "config": ENCODER},
    }
    return config


def write_text_model(folder: Path) -> LatentDiffusion:
    """Write `config.yaml`, `model.ckpt` and a tokenizer to `folder`; the model, with its tokenizer."""
    write(folder)
    config = text_config()
    model = instantiate_from_config(config.model).eval()
    state = golden_state_dict({key: p.shape for key, p in model.named_parameters()})
    model.load_state_dict(state, strict=False)
    OmegaConf.save(config, folder / "config.yaml")
    torch.save({"state_dict": model.state_dict()}, folder / "model.ckpt")
    model.cond_stage_model.tokenizer = load_tokenizer(folder, TOKENS, len(VOCABULARY))
    return model
