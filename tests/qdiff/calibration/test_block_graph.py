"""Which blocks a block depends on, and what a cache of their outputs takes."""

import pytest
import torch
from torch import Tensor, nn

from qdiff.calibration.block_graph import trace_blocks
from qdiff.calls import Call
from tests.qdiff.calibration.networks import modules, toy


def test_sources_are_what_a_block_depends_on(golden_job):
    """Change one block's output while all others are held: those that have it as a source get other inputs."""
    model, data = golden_job
    inputs = [x[:1] for x in data.inputs]
    nodes = trace_blocks(model, modules(model), Call(inputs))
    outputs, given = {}, {}

    def note(module, args, output):
        outputs[module], given[module] = output, args

    def answer(changed: nn.Module | None):
        def hook(module, args, output):
            given[module] = args
            return outputs[module] + (module is changed)

        return hook

    def forward(hook) -> dict[nn.Module, tuple[Tensor, ...]]:
        handles = [node.module.register_forward_hook(hook) for node in nodes]
        with torch.no_grad(), model.full_precision():
            model(*inputs)
        for handle in handles:
            handle.remove()
        return {module: tuple(x.clone() for x in args) for module, args in given.items()}

    expected = forward(note)
    for source in nodes[:: max(1, len(nodes) // 8)]:
        found = forward(answer(source.module))
        for node in nodes:
            differs = any(not torch.equal(a, b) for a, b in zip(found[node.module], expected[node.module]))
            assert differs == (source.module in node.sources)


@pytest.mark.parametrize("times", [0, 2])
def test_a_block_that_is_not_called_once_is_named(times):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            for _ in range(times):
                x = self.second(x)
            return self.first(x)

    model = toy(Odd())
    with pytest.raises(ValueError, match=f"calls model.second {times} times"):
        trace_blocks(model, modules(model), Call((torch.zeros(1, 3),)))
