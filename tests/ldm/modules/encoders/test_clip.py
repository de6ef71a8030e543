"""CLIP's text encoder against the published keys and a second implementation of the architecture."""

import json
import subprocess
import sys

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.modules.encoders.modules import FrozenCLIPEmbedder
from ldm.util import instantiate_from_config
from tests.golden_networks import GOLDEN, golden_state_dict

VOCABULARY, LENGTH, HEADS = 30, 7, 3
SMALL = {
    "vocab_size": VOCABULARY,
    "max_position_embeddings": LENGTH,
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "bos_token_id": VOCABULARY - 2,
    "eos_token_id": VOCABULARY - 1,
}
POSITIONS = "transformer.text_model.embeddings.position_ids"
TARGET = "ldm.modules.encoders.modules.FrozenCLIPEmbedder"


def small(max_length: int = LENGTH) -> FrozenCLIPEmbedder:
    return FrozenCLIPEmbedder(max_length=max_length, config=SMALL)


def drawn() -> dict[str, Tensor]:
    """A state in which every parameter matters: transformers starts with zero biases and small weights."""
    state = small().state_dict()
    return state | golden_state_dict({key: x.shape for key, x in state.items() if key != POSITIONS})


@pytest.fixture(scope="module")
def network() -> FrozenCLIPEmbedder:
    network = small()
    network.load_state_dict(drawn())
    return network


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(VOCABULARY, (3, LENGTH), generator=torch.Generator().manual_seed(0))


def published_manifest() -> dict[str, tuple[int, ...]]:
    manifest = json.loads((GOLDEN / "sd_v1_fp.json").read_text())
    part = "cond_stage_model."
    return {key.removeprefix(part): tuple(shape) for key, shape in manifest.items() if key.startswith(part)}


def reference(state: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """The text transformer of Radford et al. 2021, one query at a time; float64."""
    state = {key.removeprefix("transformer.text_model."): x.double() for key, x in state.items()}

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return x * state[f"{name}.weight"] + state[f"{name}.bias"]

    def attention(name: str, x: Tensor) -> Tensor:
        q, k, v = (linear(f"{name}.{which}_proj", x).split(x.shape[-1] // HEADS, dim=-1) for which in "qkv")
        out = torch.empty_like(x)
        for j in range(x.shape[0]):
            seen = slice(0, j + 1)
            weights = [F.softmax(k[h][seen] @ q[h][j] / q[h].shape[1] ** 0.5, dim=0) for h in range(HEADS)]
            out[j] = torch.cat([weights[h] @ v[h][seen] for h in range(HEADS)])
        return linear(f"{name}.out_proj", out)

    def encode(row: Tensor) -> Tensor:
        x = state["embeddings.token_embedding.weight"][row]
        x = x + state["embeddings.position_embedding.weight"][: len(row)]
        for i in range(SMALL["num_hidden_layers"]):
            layer = f"encoder.layers.{i}"
            x = x + attention(f"{layer}.self_attn", norm(f"{layer}.layer_norm1", x))
            h = linear(f"{layer}.mlp.fc1", norm(f"{layer}.layer_norm2", x))
            x = x + linear(f"{layer}.mlp.fc2", h / (1 + (-1.702 * h).exp()))
        return norm("final_layer_norm", x)

    return torch.stack([encode(row) for row in tokens])


def test_published_keys_in_the_published_order():
    with torch.device("meta"):
        network = instantiate_from_config({"target": TARGET, "params": {"device": "cuda"}})
    state, published = network.state_dict(), published_manifest()
    assert len(published) == 197
    assert [(key, tuple(x.shape)) for key, x in state.items()] == list(published.items())
    assert state[POSITIONS].dtype == torch.int64
    assert [key for key, _ in network.named_parameters()] == [key for key in published if key != POSITIONS]


def test_the_published_architecture():
    with torch.device("meta"):
        network = FrozenCLIPEmbedder()
    config = network.transformer.text_model.config
    assert (config.num_attention_heads, config.hidden_act, config.layer_norm_eps) == (12, "quick_gelu", 1e-5)
    assert (config.bos_token_id, config.eos_token_id) == (49406, 49407)
    assert network.max_length == 77


def test_outputs_are_those_of_the_architecture(network, tokens):
    want = reference(network.state_dict(), tokens)
    assert torch.allclose(network.encode_tokens(tokens).double(), want, rtol=1e-5, atol=1e-5)
    short = small(max_length=4)
    short.load_state_dict(drawn())
    assert torch.allclose(short.encode_tokens(tokens[:, :4]).double(), want[:, :4], rtol=1e-5, atol=1e-5)


@given(st.integers(0, LENGTH - 1), st.integers(1, VOCABULARY - 1))
def test_a_token_changes_nothing_before_it(network, tokens, j, shift):
    other = tokens.clone()
    other[:, j] = (other[:, j] + shift) % VOCABULARY
    before, after = network.encode_tokens(tokens), network.encode_tokens(other)
    assert torch.allclose(before[:, :j], after[:, :j], rtol=1e-5, atol=1e-5)
    changes = (before[:, j:] - after[:, j:]).abs().amax(-1)
    assert (changes > 1e-4).all()


def without_level(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.replace("transformer.text_model.", "transformer."): x for key, x in state.items()}


def without_positions(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: x for key, x in state.items() if not key.endswith("position_ids")}


def with_damaged_positions(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As files have them that were cast to half precision and averaged."""
    return {key: x.half() - 0.4 if key.endswith("position_ids") else x for key, x in state.items()}


STYLES = {
    "published": dict,
    "transformers 4.31": without_positions,
    "transformers 5": lambda state: without_level(without_positions(state)),
    "without level": without_level,
    "damaged positions": with_damaged_positions,
}


@pytest.mark.parametrize("build_on", ["cpu", "meta"])
@pytest.mark.parametrize("style", STYLES)
def test_all_styles_of_keys_load_to_the_same_network(network, tokens, style, build_on):
    with torch.device(build_on):
        model = nn.ModuleDict({"cond_stage_model": small()})
    state = {f"cond_stage_model.{key}": x for key, x in STYLES[style](drawn()).items()}
    before = set(state)
    model.load_state_dict(state, assign=build_on == "meta")
    loaded = model["cond_stage_model"]
    assert state.keys() == before
    assert loaded.state_dict().keys() == network.state_dict().keys()
    assert all(x.device.type == "cpu" and not x.requires_grad for x in loaded.state_dict().values())
    assert torch.equal(loaded.state_dict()[POSITIONS], torch.arange(LENGTH)[None])
    assert torch.equal(loaded.encode_tokens(tokens), network.encode_tokens(tokens))


@pytest.mark.parametrize("style", STYLES)
def test_missing_and_surplus_keys_are_refused(style):
    state = STYLES[style](drawn())
    kept = "final_layer_norm.weight"
    level = next(key for key in state if key.endswith(kept)).removesuffix(kept)
    for name in ("final_layer_norm.bias", "embeddings.position_embedding.weight", "encoder.layers.1.mlp.fc1.weight"):
        less = {key: x for key, x in state.items() if key != level + name}
        with pytest.raises(RuntimeError, match=rf'Missing key\(s\) in state_dict: "transformer.text_model.{name}"'):
            small().load_state_dict(less)
    for name in ("encoder.layers.2.mlp.fc1.weight", "pooler.weight", "text_model.pooler.weight"):
        with pytest.raises(RuntimeError, match=rf'key\(s\) in state_dict: .*{name}"'):
            small().load_state_dict(state | {level + name: torch.zeros(1)})
    with pytest.raises(RuntimeError, match=r'Unexpected key.*: "text_projection\.weight"'):
        small().load_state_dict(state | {"text_projection.weight": torch.zeros(1)})


def test_keys_of_two_styles_at_once_are_refused():
    state = drawn()
    flat = without_level(state)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        small().load_state_dict(state | flat)
    half = dict(list(state.items())[:9]) | dict(list(flat.items())[9:])
    with pytest.raises(RuntimeError, match="Missing key"):
        small().load_state_dict(half)


def test_weights_of_another_size_are_refused():
    wider = FrozenCLIPEmbedder(max_length=LENGTH, config=SMALL | {"vocab_size": VOCABULARY + 1})
    with pytest.raises(RuntimeError, match="size mismatch"):
        small().load_state_dict(wider.state_dict())


class Wrapped(nn.Module):
    """The structure of transformers 4."""

    real = transformers.CLIPTextModel

    def __init__(self, config: transformers.CLIPTextConfig):
        super().__init__()
        model = self.real(config)
        self.text_model = getattr(model, "text_model", model)


def test_the_structure_of_transformers_does_not_matter(network, tokens, monkeypatch):
    monkeypatch.setattr("transformers.CLIPTextModel", Wrapped)  # by name: transformers replaces its own module object
    other = small()
    assert list(other.state_dict()) == list(network.state_dict())
    other.load_state_dict(drawn())
    assert torch.equal(other.encode_tokens(tokens), network.encode_tokens(tokens))


def test_prompts_go_through_the_tokenizer(tokens):
    network = small()
    with pytest.raises(ValueError, match="no tokenizer: set its attribute `tokenizer`"):
        network(["a"])
    network.tokenizer = lambda prompts: tokens[[int(p) for p in prompts]]
    assert torch.equal(network(["2", "0"]), network.encode_tokens(tokens[[2, 0]]))
    assert network(["2", "0"]).shape == (2, LENGTH, SMALL["hidden_size"])


def test_tokens_of_another_model_are_refused(network, tokens):
    for wrong in (-1, VOCABULARY):
        bad = tokens.clone()
        bad[1, 2] = wrong
        with pytest.raises(ValueError, match=rf"must be in 0\.\.{VOCABULARY - 1}, .*own tokenizer"):
            network.encode_tokens(bad)
    for shape in (tokens[:, :-1], tokens[0]):
        with pytest.raises(ValueError, match=rf"not \(B, {LENGTH}\)"):
            network.encode_tokens(shape)


def test_frozen_and_deterministic(network, tokens):
    assert not any(p.requires_grad for p in small().parameters())
    assert torch.equal(network.train().encode_tokens(tokens), network.eval().encode_tokens(tokens))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"version": "openai/clip-vit-huge"}, "version 'openai/clip-vit-huge' is not available"),
        ({"config": SMALL}, "max_length 77 is outside 2..7"),
        ({"config": SMALL, "max_length": 1}, "max_length 1 is outside 2..7"),
        ({"config": SMALL | {"hiden_size": 3}}, "unknown parameter 'hiden_size': did you mean 'hidden_size'"),
        ({"config": SMALL | {"num_attention_heads": 5}}, r"12.*\b5\b|5.*\b12\b"),
        ({"config": SMALL | {"hidden_size": 12.5}}, "config of the text encoder: .*float"),
        ({"config": SMALL | {"hidden_act": "quick_glue"}}, "config of the text encoder: .*quick_glue"),
    ],
)
def test_what_cannot_be_is_a_value_error_of_one_line(arguments, said):
    with pytest.raises(ValueError, match=said) as error:
        FrozenCLIPEmbedder(**arguments)
    assert "\n" not in str(error.value)


def test_the_network_opens_no_file(monkeypatch):
    small()  # which imports what it needs
    monkeypatch.setattr("builtins.open", None)
    monkeypatch.setattr("socket.socket", None)
    small()


def test_transformers_is_imported_for_a_text_encoder_alone():
    code = "import sys, ldm.modules.encoders.modules, ldm.util, qdiff.files.tokenizer\nprint(*sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "ldm.modules.encoders.clip" in ended.stdout.split()
    assert not {"transformers", "tokenizers", "huggingface_hub"} & set(ended.stdout.split())
