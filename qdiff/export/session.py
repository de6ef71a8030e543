"""An exported network as a module that an engine executes."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

FLOAT = "float32"
KINDS = ("convolutions", "linear layers", "attention products")


@dataclass(frozen=True)
class Executed:
    """An operation of the graph that an engine executes, after its own changes.

    Args:
        kind: "convolutions", "linear layers" or "attention products".
        name: the engine's.
        dtype: of its operands, "int8" for either sign, or a floating-point type.
    """

    kind: str
    name: str
    dtype: str


class Session(nn.Module):
    """A network that an engine executes on the CPU.

    Args:
        inputs: name and dtype of each input, in the order of the network's parameters.
    """

    engine: str

    def __init__(self, inputs: Mapping[str, torch.dtype]):
        super().__init__()
        self.inputs = dict(inputs)

    def forward(self, *args: Tensor | None, **kwargs: Tensor | None) -> Tensor:
        """Return what the network predicts, float32 on the device of the first argument.

        Args:
            args, kwargs: those of the network, any batch; None stands for an input that the network does not take.

        Raises:
            TypeError: an input is missing, or the network takes no such input.
        """
        given = dict(zip(self.inputs, (x for x in args if x is not None)))
        given |= {name: x for name, x in kwargs.items() if x is not None}
        surplus = len([x for x in args if x is not None]) > len(self.inputs)
        if surplus or given.keys() != self.inputs.keys():
            raise TypeError(f"the network takes {', '.join(self.inputs)}, not {', '.join(given) or 'nothing'}")
        arrays = {name: given[name].detach().to("cpu", dtype).numpy() for name, dtype in self.inputs.items()}
        return torch.from_numpy(self.run(arrays)).to(next(iter(given.values())).device)

    @abstractmethod
    def run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Execute the network; arrays by name."""

    @abstractmethod
    def executed(self) -> list[Executed]:
        """Return the convolutions, linear layers and products that the engine executes."""


def in_integers(executed: Sequence[Executed]) -> str:
    """Say how much of what an engine executes is in int8, "57 of 57 convolutions, ... in int8"."""
    shares = []
    for kind in KINDS:
        found = [x.dtype for x in executed if x.kind == kind]
        if found:
            shares.append(f"{found.count('int8')} of {len(found)} {kind}")
    return f"{', '.join(shares) or 'nothing'} in int8"


def in_float(executed: Sequence[Executed]) -> list[Executed]:
    """Return what an engine does not execute in int8."""
    return [x for x in executed if x.dtype != "int8"]
