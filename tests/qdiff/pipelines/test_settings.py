"""Settings of pipelines: what they refuse, and that they hold no tensors."""

from pathlib import Path

import pytest

from qdiff.adapters.ldm.samplers import DDIM
from qdiff.pipelines.settings import ClassSampling, GuidedSampling, LatentModel, Sampling, TextSampling

DDIM_4 = DDIM(4)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Sampling(DDIM_4, batch_size=0), "batch_size must be at least 1, not 0"),
        (lambda: Sampling(DDIM_4, seed=-1), "seed must be in 0..4294967295, not -1"),
        (lambda: Sampling(DDIM_4, seed=2**32), "seed must be in 0..4294967295"),
        (lambda: GuidedSampling(DDIM_4, scale=-0.5), "scale must be at least 0, not -0.5"),
        (lambda: ClassSampling(DDIM_4, scale=-1), "scale must be at least 0"),
        (lambda: TextSampling(DDIM_4, batch_size=-3), "batch_size must be at least 1"),
        (lambda: LatentModel(Path("c"), Path("w"), precision="half"), "precision must be one of full, autocast, bf16"),
    ],
)
def test_impossible_values(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_bounds_are_allowed():
    assert Sampling(DDIM_4, 1, 2**32 - 1).batch_size == 1
    assert GuidedSampling(DDIM_4, scale=0.0).scale == 0
    assert Sampling(DDIM_4).batch_size is None


def test_a_prompt_alone_is_one_of_several():
    assert TextSampling(DDIM_4, prompts="red apple").prompts == ("red apple",)
    assert TextSampling(DDIM_4, prompts=["a", "b"], calibration_prompts="c").calibration_prompts == ("c",)
    assert ClassSampling(DDIM_4, classes=[3, 1]).classes == (3, 1)
    assert hash(TextSampling(DDIM_4, prompts=["a"])) == hash(TextSampling(DDIM_4, prompts=("a",)))
