import pytest

from qdiff.adapters.ddim import samplers as pixel
from qdiff.adapters.ldm.samplers import DDIM, DDPM, PLMS
from qdiff.pipelines.changes import changed, like
from qdiff.pipelines.settings import GuidedSampling, Sampling

BEFORE = GuidedSampling(DDIM(50, eta=0.5), batch_size=3, seed=7, scale=2.0)


def test_changes_of_the_sampler_and_of_sampling():
    after = changed(BEFORE, BEFORE.sampler, {"steps": 20, "seed": 1})
    assert after == GuidedSampling(DDIM(20, eta=0.5), batch_size=3, seed=1, scale=2.0)
    assert BEFORE.sampler == DDIM(50, eta=0.5)
    assert changed(BEFORE, PLMS(9), {}) == GuidedSampling(PLMS(9), batch_size=3, seed=7, scale=2.0)
    assert changed(BEFORE, BEFORE.sampler, {}) == BEFORE


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("sed", "no setting 'sed': did you mean seed?"),
        ("num_steps", "no setting 'num_steps': did you mean steps?"),
        ("sampler", "no setting 'sampler'"),
        ("xyz", "no setting 'xyz': use batch_size, eta, scale, seed, steps"),
    ],
)
def test_a_setting_that_does_not_exist(name, said):
    with pytest.raises(TypeError) as caught:
        changed(BEFORE, BEFORE.sampler, {name: 1})
    assert said in str(caught.value)


@pytest.mark.parametrize("sampler", [3, DDIM, None])
def test_a_sampler_without_settings(sampler):
    with pytest.raises(TypeError, match="sampler must be a name or a sampler with its settings, not "):
        changed(BEFORE, sampler, {})


def test_a_sampler_of_another_kind_keeps_what_both_have():
    assert like(DDIM(50, eta=0.5), PLMS, 50) == PLMS(50)
    assert like(PLMS(30), DDIM, 31) == DDIM(30, eta=0.0)
    assert like(DDIM(50), DDPM, 50) == DDPM()
    assert like(DDPM(), DDIM, 1000) == DDIM(1000), "of a sampler without a number of steps, its network calls"
    quad = pixel.DDIM(20, "quad", 0.3)
    assert like(quad, pixel.DPMSolver, 20) == pixel.DPMSolver(20, skip_type="quad")
    assert changed(Sampling(quad), like(quad, pixel.DDPM, 20), {"skip_type": "uniform"}).sampler == pixel.DDPM(20)
