"""The spectrum of samplers and networks whose sensitivity is known in closed form."""

from collections.abc import Iterator, Sequence
from math import prod
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from qdiff.calibration.sensitivity import Correction, measure_spectrum, measured_calls, perturbed_calls
from qdiff.files.journal import Journal

SCALES, RATES = (0.9, 1.1, 0.8, 1.05, 0.95, 1.0), (-0.5, -0.3, -0.4, -0.2, -0.3, 0.6)
CALLS, IMAGES = len(RATES), 3


class Linear:
    """x' = a x + c eps, with eps = slope x + pull * its mean over the image; counts network calls, one image each."""

    def __init__(self, slope: float = 0.0, pull: float = 0.0):
        self.slope, self.pull, self.calls = slope, pull, 0

    def __call__(self, images: Sequence[int], correct: Correction, known: Sequence[Tensor]) -> Iterator:
        x = torch.stack([torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(i)) for i in images])
        for i, (a, c) in enumerate(zip(SCALES, RATES)):
            if i < len(known):
                eps = known[i]
            else:
                self.calls += len(images)
                eps = self.slope * x + self.pull * x.mean((2, 3), keepdim=True)
            eps, _ = correct(i, 100.0 - i, eps)
            x = a * x + c * eps
            yield SimpleNamespace(t=100.0 - i, eps=eps, x_prev=x)

    def exact(self, i: int, mean: bool) -> float:
        """How far an error of norm 1 in call i moves the result, if it is its own mean or has none."""
        gain = self.slope + self.pull * mean
        later = zip(SCALES[i + 1 :], RATES[i + 1 :])
        return abs(RATES[i] * prod(a + c * gain for a, c in later))


def generator(call: int) -> torch.Generator:
    return torch.Generator().manual_seed(1000 + call)


def measured(trajectory: Linear, journal: Journal, images: int = IMAGES, **options):
    return measure_spectrum(trajectory, CALLS, images, journal, generator, **options)


def exact(trajectory: Linear, mean: bool) -> list[float]:
    """In ascending order of the timesteps, so of the last call first."""
    return [trajectory.exact(i, mean) for i in reversed(measured_calls(CALLS))]


@pytest.mark.parametrize(
    ("calls", "expected"),
    [(1, [0]), (2, [0, 1]), (3, [0, 2]), (5, [0, 4]), (6, [0, 4, 5]), (25, [0, 4, 16, 24])],
)
def test_calls_that_are_measured(calls, expected):
    assert measured_calls(calls) == expected


@pytest.mark.parametrize("slope", [0.0, -0.7])
def test_without_coupling_all_errors_count_alike(slope, tmp_path):
    linear = Linear(slope)
    found = measured(linear, Journal(tmp_path, {}))
    assert found.timesteps == tuple(100.0 - i for i in reversed(measured_calls(CALLS)))
    for values in (found.pixel, found.grid, found.whole):
        assert values == pytest.approx(exact(linear, False), rel=1e-3)


def test_a_network_that_sees_the_mean_feels_an_error_of_the_whole_image_most(tmp_path):
    """Of independent errors on n blocks, a share 1 / n of the square is the mean."""
    linear = Linear(-0.5, -2.0)
    found = measured(linear, Journal(tmp_path, {}), images=8)
    apart, together = exact(linear, False), exact(linear, True)
    assert found.whole == pytest.approx(together, rel=1e-3)
    for values, blocks, rel in ((found.pixel, 16**2, 0.03), (found.grid, 16, 0.15)):
        expected = [((a * a * (blocks - 1) + b * b) / blocks) ** 0.5 for a, b in zip(apart, together)]
        assert values == pytest.approx(expected, rel=rel)
    assert found.whole[-1] > found.grid[-1] > found.pixel[-1], "in the first call"


def test_the_network_is_called_only_for_what_is_not_known(tmp_path):
    linear, counts = Linear(0.4), []
    measured(linear, Journal(tmp_path, {}), progress=counts.append)
    assert linear.calls == IMAGES * perturbed_calls(CALLS) == sum(counts)
    assert perturbed_calls(CALLS) == 6 + 3 * (5 + 1 + 0)
    assert perturbed_calls(1) == 1


def test_what_is_known_is_what_the_network_would_say(tmp_path):
    """Each disturbed trajectory is the undisturbed one up to its error."""
    seen = []

    class Recorded(Linear):
        def __call__(self, images, correct, known):
            seen.append((list(images), [x.clone() for x in known]))
            return super().__call__(images, correct, known)

    measured(Recorded(0.4), Journal(tmp_path, {}))
    predictions = [step.eps for step in Linear(0.4)(range(IMAGES), lambda i, t, eps: (eps, 0.0), ())]
    assert seen[0] == ([0, 1, 2], [])
    for (images, known), call in zip(seen[1:], measured_calls(CALLS), strict=True):
        assert images == [0, 1, 2] * 3 and len(known) == call + 1
        assert all(torch.equal(x, eps.repeat(3, 1, 1, 1)) for x, eps in zip(known, predictions))


class Killed(Exception):
    pass


class LastJournal(Journal):
    """The process ends once it has recorded some units."""

    left = 1

    def write(self, unit, *content) -> None:
        super().write(unit, *content)
        self.left -= 1
        if not self.left:
            raise Killed


@pytest.mark.parametrize("units", [1, 3])
def test_a_killed_measurement_goes_on_with_what_is_missing(units, tmp_path):
    expected = measured(Linear(0.4, 1.0), Journal(tmp_path / "undisturbed", {}))
    journal = LastJournal(tmp_path / "killed", {})
    journal.left = units
    with pytest.raises(Killed):
        measured(Linear(0.4, 1.0), journal)
    linear, counts = Linear(0.4, 1.0), []
    assert measured(linear, Journal(tmp_path / "killed", {}), progress=counts.append) == expected
    left = measured_calls(CALLS)[units - 1 :]
    assert linear.calls == 3 * IMAGES * sum(CALLS - 1 - i for i in left)
    finished = Linear(0.4, 1.0)
    assert measured(finished, Journal(tmp_path / "killed", {})) == expected and finished.calls == 0
    names = [f"sensitivity-{i:04d}" for i in measured_calls(CALLS)]
    assert {p.stem for p in (tmp_path / "killed").glob("*.safetensors")} == {"baseline", *names}
