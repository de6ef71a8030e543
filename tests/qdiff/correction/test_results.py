"""Parts of a fit that help predictions, and harm results."""

import pytest
import torch

from qdiff.correction.parts import Part
from qdiff.correction.results import without_harm
from tests.qdiff.correction.tables import make_table

FAR = torch.linspace(0.8, 1.2, 8, dtype=torch.float64)  # squared distances of eight results, uncorrected


def decided(on: tuple[str, ...], *changes: tuple[set[str], torch.Tensor]) -> dict[str, Part]:
    """The parts after each walk with these in use found these distances."""
    left = iter([(set(), FAR), *changes])

    def distances(fitted) -> torch.Tensor:
        used, found = next(left)
        assert set(fitted.used) == used
        return found

    parts = without_harm(make_table(*on), distances).parts
    assert next(left, None) is None
    return parts


def test_a_part_that_moves_results_away_is_turned_off():
    parts = decided(("slope", "bias", "variance"), ({"slope"}, 1.5 * FAR), ({"bias"}, 0.5 * FAR))
    assert {name: part.on for name, part in parts.items()} == {"slope": False, "bias": True, "variance": True}
    assert "results are 50 % further from full precision" in parts["slope"].note
    assert "off, " in str(parts["slope"]) and parts["bias"].note == ""


def test_bias_is_compared_with_slope_where_that_stays():
    parts = decided(("slope", "bias"), ({"slope"}, 0.5 * FAR), ({"slope", "bias"}, 0.8 * FAR))
    assert (parts["slope"].on, parts["bias"].on) == (True, False)
    assert "60 % further" in parts["bias"].note


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_what_is_not_certain_stays(noise):
    sign = torch.tensor([1.0, -1] * 4, dtype=torch.float64)
    parts = decided(("bias",), ({"bias"}, FAR + 1e-3 * noise + sign * noise))
    assert parts["bias"].on


def test_results_that_are_not_finite():
    broken = torch.where(torch.arange(8) == 3, torch.inf, FAR)
    parts = decided(("bias",), ({"bias"}, broken))
    assert not parts["bias"].on and "not finite" in parts["bias"].note

    left = iter([broken, FAR])
    assert without_harm(make_table("bias"), lambda fitted: next(left)).parts["bias"].on, "it repairs one"


def test_nothing_is_sampled_without_slope_and_bias():
    table = make_table("variance")
    assert without_harm(table, lambda fitted: pytest.fail("sampled")) is table
