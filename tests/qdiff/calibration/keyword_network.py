"""A network whose blocks take keywords, None, lists and flags and return tuples and dicts, and its positional twin."""

import torch
from torch import Tensor, nn

from qdiff.adapters import Adapter
from qdiff.calibration.data import CalibrationSet
from qdiff.policy import QuantPolicy, QuantSpec
from qdiff.quant_model import QuantModel

CHANNELS, LENGTH, SAMPLES = 4, 6, 7
POLICY = QuantPolicy(
    QuantSpec(3, per_channel=True, range_search="minmax"), QuantSpec(8, symmetric=False, range_search="minmax")
)


class Streams(nn.Module):
    """The layers and the mathematics of both: two streams (N, C, L), as of joint attention."""

    def __init__(self):
        super().__init__()
        self.image = nn.Conv1d(CHANNELS, CHANNELS, 3, padding=1)
        self.text = nn.Conv1d(CHANNELS, CHANNELS, 1)
        self.joint = nn.Conv1d(CHANNELS, CHANNELS, 1)

    def streams(self, image: Tensor, text: Tensor, shifts: list[Tensor], scale: float) -> tuple[Tensor, Tensor]:
        text = self.text(text)
        joined = (self.image(image) + text).tanh() * scale
        for shift in shifts:
            joined = joined + shift
        return image + self.joint(joined), text


class KeywordBlock(Streams):
    def forward(self, image, *, text, shifts, table, scale=1.0, mask=None, as_dict=False):
        assert mask is None and table.shape == (2, 3)
        image, text = self.streams(image, text, [s for s in shifts if s is not None], scale)
        return {"image": image, "text": text, "mask": mask} if as_dict else (image, text, scale)


class PositionalBlock(Streams):
    """Both streams side by side in one tensor (N, 2C, L), which has the same loss, as channels are summed."""

    scale = 1.0

    def forward(self, joined: Tensor, *shifts: Tensor) -> Tensor:
        return torch.cat(self.streams(*joined.split(CHANNELS, 1), list(shifts), self.scale), 1)


class KeywordNetwork(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv1d(CHANNELS, CHANNELS, 1)
        self.blocks = nn.ModuleList([KeywordBlock() for _ in range(3)])
        self.last = nn.Conv1d(CHANNELS, CHANNELS, 1)

    def forward(self, x, t, *, context, added, return_dict):
        assert not return_dict
        a, b, c = self.blocks
        table, shifts = torch.ones(2, 3), [t[:, None, None].to(x.dtype) / 1000, None, added["shift"]]
        x, text, _ = a(self.first(x), text=context, shifts=shifts, table=table)
        found = b(x, text=text, shifts=[], table=table, scale=0.5, mask=None, as_dict=True)
        x, _, _ = c(image=found["image"], text=found["text"], shifts=shifts[:1], table=table)
        return (self.last(x),)


class PositionalNetwork(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv1d(CHANNELS, CHANNELS, 1)
        self.blocks = nn.ModuleList([PositionalBlock() for _ in range(3)])
        self.blocks[1].scale = 0.5
        self.last = nn.Conv1d(CHANNELS, CHANNELS, 1)

    def forward(self, x, t, context, shift):
        a, b, c = self.blocks
        t = t[:, None, None].to(x.dtype) / 1000
        joined = b(a(torch.cat([self.first(x), context], 1), t, shift))
        return self.last(c(joined, t)[:, :CHANNELS])


def quantized(network: nn.Module) -> QuantModel:
    """With weights by a fixed recipe and rounded to nearest, in double precision, where no code flips by chance."""
    draw = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data = 0.5 * torch.randn(parameter.shape, generator=draw)
    blocks = (KeywordBlock, PositionalBlock)
    adapter = Adapter("toy", type(network), blocks, {}, (), lambda model: {})
    return QuantModel(network.double(), POLICY, adapter).eval()


def data() -> tuple[CalibrationSet, CalibrationSet]:
    """The same samples for the network with keywords, and for its twin."""
    draw = torch.Generator().manual_seed(1)
    x, context, shift = (torch.randn(SAMPLES, CHANNELS, LENGTH, generator=draw).double() for _ in range(3))
    t = torch.arange(SAMPLES) * 100
    keywords = {"context": context, "added": {"shift": shift}, "return_dict": False}
    return CalibrationSet((x, t), keywords), CalibrationSet((x, t, context, shift))
