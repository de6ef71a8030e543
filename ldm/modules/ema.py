"""Exponential moving averages of weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class LitEma(nn.Module):
    """Exponential moving averages of a model's parameters, as buffers with published names.

    The buffer `abweight` is the average of the parameter `a.b.weight`. The buffers `decay` (float32) and `num_updates`
    (int32) are state of the training.

    Args:
        model: model whose parameters are averaged; the averages start as copies of them.
        decay: decay rate of the averages, in 0..1.
    """

    def __init__(self, model: nn.Module, decay: float = 0.9999):
        super().__init__()
        self.register_buffer("decay", torch.tensor(decay, dtype=torch.float32))
        self.register_buffer("num_updates", torch.tensor(0, dtype=torch.int32))
        self.parameter_names = [name for name, _ in model.named_parameters()]
        for name, p in model.named_parameters():
            self.register_buffer(name.replace(".", ""), p.detach().clone())

    def _pairs(self, model: nn.Module) -> Iterator[tuple[nn.Parameter, Tensor]]:
        parameters = dict(model.named_parameters())
        if list(parameters) != self.parameter_names:
            raise ValueError("the averages are those of other parameters: adopt them before the model is changed")
        return ((p, self.get_buffer(name.replace(".", ""))) for name, p in parameters.items())

    def copy_to(self, model: nn.Module) -> None:
        """Set the parameters of `model` to the averages; they share memory from then on.

        Raises:
            ValueError: `model` has other parameters than those that are averaged.
        """
        for p, average in self._pairs(model):
            p.data = average

    @contextmanager
    def swapped_into(self, model: nn.Module) -> Iterator[None]:
        """Swap averages and parameters within the context, without a copy, and swap them back, even after an exception.

        Raises:
            ValueError: `model` has other parameters than those that are averaged.
        """
        self._exchange(model)
        try:
            yield
        finally:
            self._exchange(model)

    def _exchange(self, model: nn.Module) -> None:
        for p, average in self._pairs(model):
            p.data, average.data = average.data, p.data
