"""The text encoder of Stable Diffusion v1, from CLIP (Radford et al. 2021)."""

from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn

from ldm.util import construct

# Architectures, by the names under which their weights are published
VERSIONS: dict[str, dict[str, int | float | str]] = {
    "openai/clip-vit-large-patch14": {
        "vocab_size": 49408,
        "max_position_embeddings": 77,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "projection_dim": 768,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "bos_token_id": 49406,
        "eos_token_id": 49407,
        "pad_token_id": 49407,
    }
}
POSITIONS = "embeddings.position_ids"


class FrozenCLIPEmbedder(nn.Module):
    """CLIP's text transformer: encodes prompts as its hidden states after the final layer norm.

    Parameters are initialised at random and do not require gradients. `state_dict` has the keys of the published
    checkpoints with any version of transformers. `load_state_dict` also accepts keys without the level `text_model.`,
    as transformers 5 saves them, and states without `position_ids`; these are always 0, 1, ..., whatever a state has.

    Attributes:
        tokenizer: function from B prompts to tokens, int64 of shape (B, max_length), with start and end tokens, padded
            and truncated as in training; None until it is set, because its vocabulary comes from a file.
        transformer: contains the network of transformers as `text_model`.
        max_length: tokens of a prompt.
        vocab_size: number of tokens in the vocabulary.
        context_shape: (max_length, hidden_size), the shape of an encoded prompt.

    Args:
        version: a key of `VERSIONS`; ignored if there is a `config`.
        max_length: tokens of a prompt, 2..max_position_embeddings.
        config: another architecture, as arguments of `transformers.CLIPTextConfig`.

    Raises:
        ValueError: the version or an argument in `config` is unknown, or a value is outside its range.
    """

    def __init__(
        self, version: str = "openai/clip-vit-large-patch14", max_length: int = 77, config: Mapping | None = None
    ):
        super().__init__()
        if config is None and version not in VERSIONS:
            raise ValueError(
                f"version '{version}' is not available, only {', '.join(VERSIONS)}: describe it with `config`"
            )
        text_model = _text_model(VERSIONS[version] if config is None else config)
        positions = text_model.config.max_position_embeddings
        if not 2 <= max_length <= positions:
            raise ValueError(f"max_length {max_length} is outside 2..{positions}, the positions of the text encoder")
        text_model.embeddings.register_buffer("position_ids", torch.arange(positions)[None], persistent=True)
        self.max_length: int = max_length
        self.vocab_size: int = text_model.config.vocab_size
        self.context_shape: tuple[int, int] = (max_length, text_model.config.hidden_size)
        self.tokenizer: Callable[[list[str]], Tensor] | None = None
        self.transformer = nn.ModuleDict({"text_model": text_model})
        self.transformer.register_load_state_dict_pre_hook(to_published)
        self.requires_grad_(False)

    def forward(self, prompts: list[str]) -> Tensor:
        """Encode B prompts, shape (B, max_length, hidden_size).

        Raises:
            ValueError: there is no tokenizer, or it is that of another model.
        """
        if self.tokenizer is None:
            raise ValueError("the text encoder has no tokenizer: set its attribute `tokenizer`, or use `encode_tokens`")
        return self.encode_tokens(self.tokenizer(prompts))

    def encode_tokens(self, tokens: Tensor) -> Tensor:
        """Encode tokens as hidden states. The network is causal: state j depends on the tokens up to j only.

        Args:
            tokens: in 0..vocab_size - 1, int64, shape (B, max_length), on any device.

        Returns:
            shape (B, max_length, hidden_size), on the device and in the dtype of the parameters.

        Raises:
            ValueError: the shape is another, or a token is outside the vocabulary.
        """
        text_model = self.transformer["text_model"]
        if tokens.dim() != 2 or tokens.shape[1] != self.max_length:
            raise ValueError(f"tokens have shape {tuple(tokens.shape)}, not (B, {self.max_length})")
        if ((tokens < 0) | (tokens >= self.vocab_size)).any():
            raise ValueError(
                f"tokens must be in 0..{self.vocab_size - 1}, the text encoder's vocabulary: use its own tokenizer"
            )
        return text_model(input_ids=tokens.to(text_model.get_buffer(POSITIONS).device)).last_hidden_state


def _text_model(config: Mapping) -> Any:
    """Return the text transformer, a class of transformers; version 4 wraps it once more than version 5."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CLIPTextConfig, CLIPTextModel

    try:
        model = CLIPTextModel(construct(CLIPTextConfig, config, name="config of the text encoder"))
    except (StrictDataclassError, TypeError, KeyError) as e:
        raise ValueError(f"config of the text encoder: {' '.join(str(e).split())}") from e
    return getattr(model, "text_model", model)


def to_published(transformer: nn.ModuleDict, state: MutableMapping[str, Tensor], prefix: str, *_: object) -> None:
    """Rename the keys of a state that is about to be loaded to their published names, in place.

    Args:
        transformer: `FrozenCLIPEmbedder.transformer`, whose `load_state_dict` calls this as a hook.
        state: tensors with the keys `prefix`...; `position_ids`, int64 of shape (1, positions), is added or replaced.
        prefix: beginning of the keys.
    """
    level = f"{prefix}text_model."
    if not any(key.startswith(level) for key in state):
        for key in list(state):
            state[level + key.removeprefix(prefix)] = state.pop(key)
    own = transformer.get_buffer(f"text_model.{POSITIONS}")
    device = next(iter(state.values()), own).device  # `own` may be on the meta device
    state[level + POSITIONS] = torch.arange(own.shape[1], device=device)[None]
