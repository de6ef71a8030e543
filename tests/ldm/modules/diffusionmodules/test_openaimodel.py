"""The UNet: its topology, its residual blocks, and what quantization relies on."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion.blocks import Upsample
from ldm.modules.attention import BasicTransformerBlock, SpatialTransformer
from ldm.modules.diffusionmodules.blocks import AttentionBlock, Downsample, ResBlock
from ldm.modules.diffusionmodules.openaimodel import UNetModel
from tests.golden_networks import load_case
from tests.ldm.drawn import draw, drawn

BLOCKS = (ResBlock, AttentionBlock, BasicTransformerBlock)


def unet(**params) -> UNetModel:
    """Three levels, attention on the last two."""
    fixed = {"in_channels": 3, "out_channels": 3, "model_channels": 32, "num_res_blocks": 1, "num_heads": 4}
    return UNetModel(**fixed | {"channel_mult": [1, 2, 3], "attention_resolutions": [2, 4]} | params)


VARIANTS = [
    {},
    {"num_heads": -1, "num_head_channels": 16},
    {"resblock_updown": True, "use_scale_shift_norm": True},
    {"conv_resample": False, "num_res_blocks": 2},
    {"use_spatial_transformer": True, "context_dim": 12, "transformer_depth": 2},
    {"num_classes": 5},
]


def inputs(model: UNetModel, batch: int = 2) -> tuple[Tensor | None, ...]:
    """x, t, context and y."""
    context = draw(batch, 3, 12, seed=1) if model.takes_context else None
    y = torch.arange(batch) if model.label_emb is not None else None
    return draw(batch, 3, 8, 12), torch.arange(batch) * 100, context, y


@torch.no_grad()
@pytest.mark.parametrize("params", VARIANTS)
def test_output_of_a_sample_does_not_depend_on_its_neighbours(params):
    model = drawn(unet(**params))
    args = inputs(model)
    output = model(*args)
    assert output.shape == args[0].shape
    torch.testing.assert_close(model(*(x if x is None else x[1:] for x in args)), output[1:], atol=1e-4, rtol=1e-4)
    assert torch.dist(output[0], output[1]) > 0.1


@torch.no_grad()
@pytest.mark.parametrize("params", VARIANTS)
def test_untrained_network_predicts_nothing(params):
    assert not unet(**params)(*inputs(unet(**params))).any()


@torch.no_grad()
@pytest.mark.parametrize("params", VARIANTS)
def test_blocks_are_called_once_and_with_positional_tensors(params):
    model = unet(**params)
    calls = []
    for module in model.modules():
        if isinstance(module, BLOCKS):
            module.register_forward_pre_hook(lambda m, args, kwargs: calls.append((m, args, kwargs)), with_kwargs=True)
    model(*inputs(model))
    blocks = [m for m in model.modules() if isinstance(m, BLOCKS)]
    assert [id(m) for m, _, _ in calls] == [id(m) for m in blocks]  # in definition order, too
    assert all(isinstance(x, Tensor) and not kwargs for _, args, kwargs in calls for x in args)


@torch.no_grad()
@pytest.mark.parametrize("params", VARIANTS)
def test_skip_channels_are_those_of_the_outputs_that_are_joined_in(params):
    model = unet(**params)
    widths: list[int] = []
    for stage in model.input_blocks:
        stage.register_forward_hook(lambda _, args, out: widths.append(out.shape[1]))
    model(*inputs(model))
    first = [stage[0] for stage in model.output_blocks]
    assert [block.skip_channels for block in first] == widths[::-1]
    others = [m for m in model.modules() if isinstance(m, ResBlock) and not any(m is b for b in first)]
    assert not any(block.skip_channels for block in others)
    assert all(block.skip_connection.in_channels > block.skip_channels for block in first)


def test_split_layers_are_those_of_a_calibrated_checkpoint():
    settings, tensors = load_case("sd_w4a8_split_sm16")
    params = settings.config.model.params.unet_config.params
    model = UNetModel(**{key: params[key] for key in params if key not in {"image_size", "use_checkpoint", "legacy"}})
    suffix = ".skip_connection.weight_quantizer_0.delta"
    split = {k.removeprefix("scale.model.").removesuffix(suffix) for k in tensors if k.endswith(suffix)}
    assert {path for path, m in model.named_modules() if isinstance(m, ResBlock) and m.skip_channels} == split
    assert len(split) == 4


def test_attention_stands_at_the_factors_of_the_configuration():
    model = unet()
    attends = [any(isinstance(m, AttentionBlock) for m in stage) for stage in model.input_blocks]
    assert attends == [False, False, False, True, False, True]  # conv, level 1, halving, level 2, halving, level 3
    attends = [any(isinstance(m, AttentionBlock) for m in stage) for stage in model.output_blocks]
    assert attends == [True, True, True, True, False, False]
    assert isinstance(unet(use_spatial_transformer=True, context_dim=4).middle_block[1], SpatialTransformer)


def test_heads_by_number_and_by_width():
    def numbers(**params: int) -> list[int]:
        return [m.attention.n_heads for m in unet(**params).modules() if isinstance(m, AttentionBlock)]

    assert set(numbers(num_heads=2)) == {2}
    assert set(numbers(num_head_channels=16)) == {64 // 16, 96 // 16}


@torch.no_grad()
def test_class_is_added_to_the_timestep():
    model = drawn(unet(num_classes=5))
    x, t, _, y = inputs(model)
    plain = unet()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if k != "label_emb.weight"})
    handle = plain.time_embed.register_forward_hook(lambda _, args, out: out + model.label_emb.weight[y])
    torch.testing.assert_close(model(x, t, None, y), plain(x, t))
    handle.remove()
    assert torch.dist(model(x, t, None, y), plain(x, t)) > 0.1


@torch.no_grad()
@pytest.mark.parametrize("scale_shift", [False, True])
@pytest.mark.parametrize("resample", [None, Upsample(32, False), Downsample(32, False)])
def test_residual_block(scale_shift, resample):
    block = drawn(ResBlock(32, 6, 0.0, 64, scale_shift, resample))
    x, emb = draw(2, 32, 4, 6), draw(2, 6, seed=1)

    def norm(x: Tensor, layer: nn.Module) -> Tensor:
        return F.group_norm(x, 32, layer.weight, layer.bias)

    def resized(x: Tensor) -> Tensor:
        if resample is None:
            return x
        if isinstance(resample, Upsample):
            return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        return x.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).mean(dim=(3, 5))

    def conv(x: Tensor, layer: nn.Conv2d) -> Tensor:
        return F.conv2d(x, layer.weight, layer.bias, padding=layer.kernel_size[0] // 2)

    h = conv(resized(F.silu(norm(x, block.in_layers[0]))), block.in_layers[2])
    e = (F.silu(emb) @ block.emb_layers[1].weight.T + block.emb_layers[1].bias)[:, :, None, None]
    h = norm(h, block.out_layers[0]) * (1 + e[:, :64]) + e[:, 64:] if scale_shift else norm(h + e, block.out_layers[0])
    expected = conv(F.silu(h), block.out_layers[3]) + conv(resized(x), block.skip_connection)
    torch.testing.assert_close(block(x, emb), expected, atol=1e-4, rtol=1e-4)


def test_dropout_is_on_in_training_only():
    block = drawn(ResBlock(32, 6, 0.5, 32))
    x, emb = draw(1, 32, 4, 4), draw(1, 6)
    assert torch.equal(block(x, emb), block(x, emb))
    block.train()
    assert not torch.equal(block(x, emb), block(x, emb))


@torch.no_grad()
def test_resampling_halves_and_doubles():
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert Downsample(1, with_conv=False)(x).tolist() == [[[[2.5, 4.5], [10.5, 12.5]]]]
    assert torch.equal(Upsample(1, with_conv=False)(x)[..., 1::2, ::2], x)
    down = Downsample(1, with_conv=True)
    assert torch.equal(down(x), F.conv2d(F.pad(x, (1, 1, 1, 1)), down.op.weight, down.op.bias, stride=2))


@pytest.mark.parametrize(
    ("params", "named"),
    [
        ({"num_heads": 5}, "num_heads=5"),
        ({"num_heads": -1}, "num_heads=-1"),
        ({"num_head_channels": 48}, "num_head_channels=48"),
        ({"num_head_channels": 128}, "num_head_channels=128"),
        ({"use_spatial_transformer": True}, "context_dim=None"),
        ({"context_dim": 8}, "context_dim=8"),
        ({"model_channels": 48}, "divisible"),
    ],
)
def test_refuses_what_it_cannot_be_built_for(params, named):
    with pytest.raises(ValueError, match=named):
        unet(**params)


def test_refuses_what_it_cannot_be_given():
    x, t = torch.zeros(1, 3, 8, 8), torch.zeros(1)
    with pytest.raises(ValueError, match="multiples of 4"):
        unet()(torch.zeros(1, 3, 8, 6), t)
    with pytest.raises(ValueError, match="3 channels"):
        unet()(torch.zeros(1, 4, 8, 8), t)
    with pytest.raises(ValueError, match="no context"):
        unet()(x, t, torch.zeros(1, 3, 12))
    with pytest.raises(ValueError, match="a context"):
        unet(use_spatial_transformer=True, context_dim=12)(x, t)
    with pytest.raises(ValueError, match="no class"):
        unet()(x, t, None, torch.zeros(1))
    with pytest.raises(ValueError, match="a class"):
        unet(num_classes=5)(x, t)
