"""The spectrum's interpolation, and that its bands add up to the squared sensitivities."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qdiff.spectrum import Spectrum, squares

SPECTRUM = Spectrum((0.0, 100.0, 900.0), (0.01, 0.1, 0.4), (0.02, 0.8, 3.2), (0.03, 0.4, 12.8))


def test_known_timesteps_have_their_own_values():
    bands = SPECTRUM.bands(torch.tensor([900, 0, 100]))
    expected = [[0.4**2, 0.01**2, 0.1**2], [3.2**2 - 0.4**2, 0.02**2 - 0.01**2, 0.8**2 - 0.1**2]]
    expected.append([12.8**2 - 3.2**2, 0.03**2 - 0.02**2, 0.0])  # 0.4 < 0.8 is no further error
    torch.testing.assert_close(bands, torch.tensor(expected))


@given(st.floats(0, 1), st.integers(0, 1))
def test_between_two_timesteps_the_logarithm_is_linear(share, i):
    left, right = SPECTRUM.timesteps[i : i + 2]
    t = left + share * (right - left)
    (s2,) = SPECTRUM.bands(torch.tensor([t], dtype=torch.float64))[0].tolist()
    a, b = SPECTRUM.pixel[i : i + 2]
    assert math.sqrt(s2) == pytest.approx(a ** (1 - share) * b**share, rel=1e-5)


def test_beyond_the_known_timesteps_it_is_constant():
    inside, outside = (SPECTRUM.bands(torch.tensor(t)) for t in ([0.0, 900.0], [-5.0, 999.0]))
    assert torch.equal(inside, outside)


S = st.floats(0, 100)


@given(S, S, S)
def test_bands_add_up_to_the_square_of_the_largest_so_far(pixel, grid, whole):
    """An error on whole blocks counts by the sum of its bands."""
    bands = Spectrum((5.0,), (pixel,), (grid,), (whole,)).bands(torch.tensor([1.0, 7.0]))
    assert (bands >= 0).all() and torch.equal(bands[:, 0], bands[:, 1])
    largest = torch.tensor([pixel, max(pixel, grid), max(pixel, grid, whole)]).square()
    torch.testing.assert_close(bands[:, 0].cumsum(0), largest, rtol=1e-5, atol=1e-12)


def test_the_uniform_spectrum_weighs_all_alike():
    bands = Spectrum.uniform().bands(torch.tensor([0.0, 500.0]))
    torch.testing.assert_close(bands, torch.tensor([[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]))


def test_a_softened_spectrum_weighs_by_the_first_power():
    soft = SPECTRUM.softened()
    assert soft.timesteps == SPECTRUM.timesteps
    bands = soft.bands(torch.tensor([900.0]))[:, 0]
    torch.testing.assert_close(bands, torch.tensor([0.4, 3.2 - 0.4, 12.8 - 3.2]))


def test_json_gives_the_same_spectrum_back():
    assert Spectrum.from_dict(json.loads(json.dumps(SPECTRUM.to_dict()))) == SPECTRUM
    assert SPECTRUM.to_dict()["timesteps"] == [0.0, 100.0, 900.0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (((), (), (), ()), "a value of each kind at every timestep"),
        (((1.0, 2.0), (1.0,), (1.0,), (1.0,)), "a value of each kind at every timestep"),
        (((1.0, 2.0), (1.0, 1.0), (1.0, 1.0), (1.0,)), "a value of each kind at every timestep"),
        (((2.0, 1.0), *[(1.0, 1.0)] * 3), r"must ascend, not \(2\.0, 1\.0\)"),
        (((1.0, 1.0), *[(1.0, 1.0)] * 3), "must ascend"),
    ],
)
def test_values_that_are_no_spectrum(values, message):
    with pytest.raises(ValueError, match=message):
        Spectrum(*values)


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        ({}, TypeError),
        ({**SPECTRUM.to_dict(), "other": [1.0]}, TypeError),
        ({**SPECTRUM.to_dict(), "pixel": 1.0}, TypeError),
        ({**SPECTRUM.to_dict(), "pixel": ["a", "b", "c"]}, ValueError),
        ({**SPECTRUM.to_dict(), "pixel": [1.0]}, ValueError),
    ],
)
def test_a_dict_that_is_no_spectrum_is_refused(wrong, kind):
    with pytest.raises(kind):
        Spectrum.from_dict(wrong)


def test_squares_of_an_error_are_those_of_its_averages():
    """Of noise: all of it; of what is constant on the grid, twice; of a constant, three times."""
    x = torch.ones(2, 3, 8, 8)
    assert squares(2 * x) == pytest.approx((4 * 384.0,) * 3)
    blocks = torch.tensor([1.0, -1.0, -1.0, 1.0]).repeat_interleave(2)
    assert squares(x * blocks) == pytest.approx((384.0, 384.0, 0.0))
    pixels = torch.tensor([1.0, -1.0]).repeat(4)
    assert squares(x * pixels) == pytest.approx((384.0, 0.0, 0.0))
