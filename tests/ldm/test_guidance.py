"""Guidance against models that are known in c, and the shapes of conditions that it takes."""

import pytest
import torch

from ldm.guidance import batch_sizes, guided

X, T = torch.linspace(-2, 2, 6).view(2, 3), torch.tensor([7, 7])
C, UC = torch.tensor([[1.0], [3.0]]), torch.tensor([[-2.0], [0.5]])


class Recorder:
    """eps = x + c^2, with every call."""

    def __init__(self):
        self.calls = []

    def __call__(self, x, t, c):
        self.calls.append((x, t, c))
        return x + c**2


def test_prediction_goes_through_both_conditions():
    model = Recorder()
    eps = guided(model, C, UC, scale=3.0)(X, T)
    torch.testing.assert_close(eps, X + torch.tensor([[4 + 3 * (1 - 4)], [0.25 + 3 * (9 - 0.25)]]))
    ((x, t, c),) = model.calls  # a single one, without the condition first
    assert torch.equal(x, torch.cat([X, X])) and torch.equal(t, torch.tensor([7, 7, 7, 7]))
    assert torch.equal(c, torch.cat([UC, C]))


@pytest.mark.parametrize(("c", "uc", "scale"), [(C, UC, 1.0), (C, None, 5.0), (C, None, 1.0)])
def test_without_guidance_the_call_is_the_model_s_own(c, uc, scale):
    model = Recorder()
    torch.testing.assert_close(guided(model, c, uc, scale)(X, T), X + C**2)
    ((x, t, given),) = model.calls
    assert x is X and t is T and given is C


def test_scale_zero_is_unconditional():
    torch.testing.assert_close(guided(Recorder(), C, UC, 0.0)(X, T), X + UC**2)


def test_a_model_without_conditions_is_given_none():
    assert guided(lambda x, t, c: c)(X, T) is None


def test_structures_of_tensors_arrive_as_they_are():
    image, text, label = torch.rand(2, 1, 4, 4), torch.rand(2, 5, 3), torch.tensor([1, 2])
    c = {"c_concat": [image], "c_crossattn": [text, (text + 1, label)]}
    uc = {"c_concat": [image], "c_crossattn": [0 * text, (0 * text, label + 7)]}

    def model(x, t, c):
        (image,), (text, (more, label)) = c["c_concat"], c["c_crossattn"]
        return x * image.mean((1, 2, 3))[:, None] + (text + 2 * more).mean((1, 2))[:, None] + label[:, None]

    expected = model(X, T, uc) + 2.5 * (model(X, T, c) - model(X, T, uc))
    torch.testing.assert_close(guided(model, c, uc, 2.5)(X, T), expected)
    assert batch_sizes(c) == {2}
    assert batch_sizes(None) == set()
    assert batch_sizes([image, text[:1]]) == {1, 2}


@pytest.mark.parametrize(
    "c", [None, C[:1], torch.cat([C, C], 1), [C], {"c_crossattn": UC}, {"c_concat": C, "c_crossattn": C}]
)
def test_conditions_must_be_alike(c):
    with pytest.raises(ValueError, match="differ in shape"):
        guided(Recorder(), c, UC, 2.0)
