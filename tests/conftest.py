"""Fixtures and settings that the tests share."""

from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import settings
from torch import Tensor

from ddim.models.diffusion import Model
from tests.golden_networks import GoldenCase, golden_state_dict, load_case

# The same examples in every run, and no deadline, because a busy machine is no failure.
settings.register_profile("repository", derandomize=True, deadline=None, max_examples=50)
settings.load_profile("repository")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Compute on one thread: sums in another order may turn a rounding, and with it all losses after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_case() -> GoldenCase:
    """The smallest golden network: 16x16 images, 32 channels, two levels, attention at 8."""
    return load_case("ddim_w4a8_split")


@pytest.fixture(scope="session")
def make_ddim(tiny_case: GoldenCase) -> Callable[[], Model]:
    """Makes the tiny DDIM network, always with the same weights, in evaluation mode."""

    def make() -> Model:
        model = Model(tiny_case.settings.config).eval()
        model.load_state_dict(golden_state_dict({key: x.shape for key, x in model.state_dict().items()}))
        return model

    return make


@pytest.fixture(scope="session")
def ddim_inputs(tiny_case: GoldenCase) -> tuple[Tensor, Tensor]:
    """Two inputs of the tiny network: x_t (2, 3, 16, 16) and t (2,)."""
    return tiny_case.tensors["x"], tiny_case.tensors["t"]
