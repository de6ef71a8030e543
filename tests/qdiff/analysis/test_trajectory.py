import pytest
import torch

import qdiff
from qdiff.analysis.layer_errors import layer_errors
from qdiff.analysis.trajectory import trajectory_errors
from tests.ldm.tiny import CLASSES, write_latent


def squares(x: torch.Tensor) -> float:
    return (x.double() ** 2).sum().item()


def test_errors_by_an_independent_computation(pipelines):
    found = trajectory_errors(pipelines.fp, {"a": pipelines.w4, "b": pipelines.w8}, images=3)
    steps = list(pipelines.fp.steps(range(3)))
    for name, other in {"a": pipelines.w4, "b": pipelines.w8}.items():
        assert found[name].timesteps == tuple(step.t for step in steps)
        predicted = [other.network(step.x_t, torch.full((3,), step.t)) for step in steps]
        eps = [squares(q - step.eps) / squares(step.eps) for q, step in zip(predicted, steps)]
        assert found[name].eps == pytest.approx(eps, rel=1e-4)
        own = list(other.steps(range(3)))
        distance = [squares(q.x_prev - step.x_prev) / squares(step.x_prev) for q, step in zip(own, steps)]
        assert found[name].distance == pytest.approx(distance, rel=1e-4)
    assert max(found["b"].eps) < min(found["a"].eps)


def test_the_first_error_moves_x_as_the_sampler_says(pipelines):
    """Before the first step both are at the same x_T: the distance after it is that of eps, times its factor."""
    plain = pipelines.fp.with_sampling(eta=0.0)
    other = pipelines.w4.with_sampling(eta=0.0)
    found = trajectory_errors(plain, {"w4": other}, 1)["w4"]
    first = next(iter(plain.steps([0])))
    abar = plain.abar.double()
    a, b = abar[int(plain.timesteps[0])], abar[int(plain.timesteps[1])]
    factor = (1 - b).sqrt() - (b * (1 - a) / a).sqrt()  # of eps in x_prev, DDIM equation 12
    expected = found.eps[0] * (factor**2).item() * squares(first.eps) / squares(first.x_prev)
    assert found.distance[0] == pytest.approx(expected, rel=1e-3)


def test_without_quantization_there_is_no_error(pipelines, unquantized):
    (found,) = trajectory_errors(pipelines.fp, {"off": unquantized}, 1).values()
    assert max(*found.eps, *found.distance) < 1e-10  # sums of floats may differ


@pytest.mark.parametrize("sampler", ["ddim", "plms", "dpm"])
def test_guided_models_and_other_samplers_have_an_error_for_each_call(sampler, tmp_path):
    write_latent(CLASSES, tmp_path)
    pipe = qdiff.load_pipeline(tmp_path, device="cpu", sampler=sampler, steps=4, scale=2)
    other = qdiff.quantize(pipe, weight_bits=4, method="linear", timesteps=1, samples=1)
    (found,) = trajectory_errors(pipe, {"w4": other}, 2).values()
    layers = layer_errors(pipe, other, 2)
    assert len(found.eps) == len(found.distance) == pipe.nfe == layers.errors.shape[1]
    assert list(found.timesteps) == pytest.approx(pipe.timesteps) and min(found.eps) > 0


def test_pipelines_that_sample_differently_are_refused(pipelines):
    with pytest.raises(ValueError, match="sample differently"):
        trajectory_errors(pipelines.fp, {"w4": pipelines.w4.with_sampling(seed=1)})
