import math
import re

import numpy as np
import pytest
import torch

from diffusion.checks import check_choice, check_number, whole


def test_whole_numbers_of_every_kind_become_ints():
    for value in (3, np.int64(3), np.uint8(3), torch.tensor(3)):
        found = whole("n", value, 1, 3)
        assert type(found) is int and found == 3
    assert whole("n", 10**12, 1) == 10**12


@pytest.mark.parametrize("value", [1.0, "1", None, [1], np.float32(1)])
def test_what_is_not_a_whole_number(value):
    with pytest.raises(TypeError, match=re.escape(f"n must be a whole number, not {value!r}")):
        whole("n", value, 0)


@pytest.mark.parametrize(
    ("value", "high", "said"), [(0, None, "n must be at least 1, not 0"), (4, 3, r"n must be in 1\.\.3, not 4")]
)
def test_whole_numbers_outside_their_range(value, high, said):
    with pytest.raises(ValueError, match=said):
        whole("n", value, 1, high)


def test_numbers():
    for value in (0, 0.5, 1, np.float32(0.25), True):
        check_number("x", value, 0, 1)
    for value in (-1e-9, 1.1, math.nan):
        with pytest.raises(ValueError, match=rf"x must be in 0\.\.1, not {value}"):
            check_number("x", value, 0, 1)
    with pytest.raises(ValueError, match="x must be at least 0, not inf"):
        check_number("x", math.inf, 0)
    with pytest.raises(TypeError, match="x must be a number, not '1'"):
        check_number("x", "1", 0)


def test_choices():
    check_choice("kind", "a", ("a", "b"))
    with pytest.raises(ValueError, match=r"kind must be one of a, b, not 'c'"):
        check_choice("kind", "c", ("a", "b"))
