"""Classes as conditions; what networks get is tested with the scripts."""

from types import SimpleNamespace

import pytest

from ldm.modules.encoders.modules import ClassEmbedder, FrozenCLIPEmbedder
from qdiff.errors import UserError
from qdiff.pipelines.conditions import Classes, Unconditional, conditions_of
from tests.ldm.tiny_text import ENCODER, TOKENS


def classes(**params) -> SimpleNamespace:
    return SimpleNamespace(cond_stage_model=ClassEmbedder(4, **params))


def made(chosen: list[int] | None = None, **params) -> Classes:
    latent = classes(**params)
    return Classes(latent, latent.cond_stage_model, chosen, 0)


def test_classes_of_images():
    assert made(n_classes=3, null_class=1).text(range(3)) == {"class": "0, 2, 0"}
    assert made([1, 2], n_classes=3, null_class=1).text([0]) == {"class": "1"}
    assert made(n_classes=3).text(range(4)) == {"class": "0, 1, 2, 0"}


def test_the_published_models_of_1000_and_1001_classes():
    assert list(made().turns) == list(range(1000))
    assert list(made(n_classes=1001).turns) == list(range(1000))
    assert isinstance(conditions_of(classes(n_classes=1001), None, 3.0, 0), Classes)
    with pytest.raises(UserError, match=r"--scale 3.0 needs a null class.*null_class=NUMBER"):
        conditions_of(classes(), None, 3.0, 0)


def test_no_condition_has_no_text():
    assert Unconditional().text([0]) == {}


def test_a_model_of_texts_has_a_script_of_its_own():
    encoder = FrozenCLIPEmbedder(max_length=TOKENS, config=ENCODER)
    with pytest.raises(UserError, match=r"scripts/txt2img\.py"):
        conditions_of(SimpleNamespace(cond_stage_model=encoder), None, 1.0, 0)
