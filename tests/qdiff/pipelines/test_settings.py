"""Settings of pipelines: what they refuse, and that they hold no tensors."""

import json
import re
from pathlib import Path

import numpy as np
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
        (lambda: GuidedSampling(DDIM_4, scale=float("nan")), "scale must be at least 0, not nan"),
        (lambda: ClassSampling(DDIM_4, classes=[2, -1]), "classes must be at least 0, not -1"),
        (lambda: ClassSampling(DDIM_4, classes=[]), "classes must have at least one, or be None for all"),
        (lambda: TextSampling(DDIM_4, height=0), "height must be at least 1, not 0"),
        (lambda: TextSampling(DDIM_4, noise_period=-2), "noise_period must be at least 1, not -2"),
    ],
)
def test_impossible_values(make, said):
    with pytest.raises(ValueError, match=said):
        make()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Sampling(DDIM_4, batch_size=1.5), "batch_size must be a whole number, not 1.5"),
        (lambda: Sampling(DDIM_4, seed=None), "seed must be a whole number, not None"),
        (lambda: GuidedSampling(DDIM_4, scale="3"), "scale must be a number, not '3'"),
        (lambda: ClassSampling(DDIM_4, classes="2,6"), "classes must be a whole number, not '2'"),
        (lambda: ClassSampling(DDIM_4, classes=[0.5]), "classes must be a whole number, not 0.5"),
        (lambda: TextSampling(DDIM_4, prompts=3), "prompts must be one text or several, not 3"),
        (lambda: TextSampling(DDIM_4, prompts=["a", None]), "prompts must be one text or several, not None"),
    ],
)
def test_values_of_another_type(make, said):
    with pytest.raises(TypeError, match=re.escape(said)):
        make()


def test_whole_numbers_of_numpy_become_plain_ones():
    """JSON, in which a calibration records its seed, has no others."""
    seed, classes = Sampling(DDIM_4, seed=np.int64(3)).seed, ClassSampling(DDIM_4, classes=np.array([4, 2])).classes
    assert (type(seed), seed) == (int, 3) and json.dumps(classes) == "[4, 2]"


def test_bounds_are_allowed():
    assert Sampling(DDIM_4, 1, 2**32 - 1).batch_size == 1
    assert GuidedSampling(DDIM_4, scale=0.0).scale == 0
    assert Sampling(DDIM_4).batch_size is None


def test_a_prompt_alone_is_one_of_several():
    assert TextSampling(DDIM_4, prompts="red apple").prompts == ("red apple",)
    assert TextSampling(DDIM_4, prompts=["a", "b"], calibration_prompts="c").calibration_prompts == ("c",)
    assert ClassSampling(DDIM_4, classes=[3, 1]).classes == (3, 1)
    assert ClassSampling(DDIM_4, classes=3).classes == (3,)
    assert hash(TextSampling(DDIM_4, prompts=["a"])) == hash(TextSampling(DDIM_4, prompts=("a",)))
