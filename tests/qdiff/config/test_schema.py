from dataclasses import dataclass, field

import pytest
from omegaconf import OmegaConf

from qdiff.config.schema import checked_section
from qdiff.errors import UserError


@dataclass
class Schema:
    size: int
    names: list[str]
    rate: float = 0.5
    flip: bool = False
    warmup: int = field(default=7, metadata={"minimum": 0})


GIVEN = {"size": 3, "names": ["a"], "rate": 1, "warmup": 0, "other": "kept by the file alone"}


def checked(given: object, name: str = "training"):
    config = OmegaConf.create({name.rpartition(".")[2]: given})
    return checked_section(config, name, Schema, "c.yml", "see d.yml")


def test_values_are_converted_and_defaults_added():
    section = checked(GIVEN)
    assert section == {"size": 3, "names": ["a"], "rate": 1.0, "flip": False, "warmup": 0}
    assert isinstance(section.rate, float)
    assert checked({"size": "4", "names": []}, "part.training") == {
        "size": 4,
        "names": [],
        "rate": 0.5,
        "flip": False,
        "warmup": 7,
    }


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "'c.yml' has no section 'part.training': see d.yml"),
        ("word", "'c.yml' has no section 'part.training': see d.yml"),
        ({"names": []}, "'c.yml' lacks part.training.size: add it"),
        (GIVEN | {"size": 0}, "'c.yml': part.training.size is 0: make it at least 1"),
        (GIVEN | {"warmup": -1}, "'c.yml': part.training.warmup is -1: make it at least 0"),
        (GIVEN | {"rate": "fast"}, "'c.yml': part.training.rate is wrong ("),
        (GIVEN | {"names": "a"}, "'c.yml': part.training.names is wrong ("),
        (GIVEN | {"size": "${nothing}"}, "'c.yml': part.training.size is wrong ("),
    ],
)
def test_what_is_wrong_is_named(given, said):
    with pytest.raises(UserError) as caught:
        checked(given, "part.training")
    assert str(caught.value).startswith(said) and "\n" not in str(caught.value)


def test_a_missing_part_has_no_section():
    with pytest.raises(UserError, match=r"no section 'part\.training'"):
        checked_section(None, "part.training", Schema, "c.yml", "see d.yml")
