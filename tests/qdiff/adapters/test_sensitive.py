"""Layers that are worth more bits: each family names them, and a policy gives them 8."""

import pytest

from qdiff.adapters import FAMILIES, adapter_for, adapter_of
from qdiff.cli.quantization_flags import KEPT
from qdiff.policy import QuantPolicy, QuantSpec
from qdiff.quant_model import QuantModel
from tests.tiny import tiny_network

W4 = QuantSpec(4, per_channel=True, range_search="minmax")
W4A4 = QuantPolicy(W4, QuantSpec(4), act_rules=(("*.conv_in", 6),), weight_rules=(("*.conv1", 3),))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_names_what_the_flag_accepts(family):
    assert set(adapter_of(family).sensitive) == set(KEPT)


def test_the_ends_and_the_time_embedding_get_8_bits_weights_and_activations():
    network = tiny_network()
    paths = {f"model.{path}" for path, m in network.named_modules() if hasattr(m, "weight") and "norm" not in path}
    adapter = adapter_for(network)
    ends = {"model.conv_in", "model.conv_out"}
    time = {path for path in paths if "temb" in path}
    assert len(time) > 8
    for names, wanted in (((), set()), (("ends",), ends), (("time",), time), (("ends", "time"), ends | time)):
        policy = adapter.with_8_bits(W4A4, names)
        assert {path for path in paths if policy.weight_for(path).bits == 8} == wanted
        assert {path for path in paths if policy.act_for(path).bits == 8} == wanted
    assert adapter.with_8_bits(W4A4, ()) == W4A4
    assert adapter.with_8_bits(W4A4, ("time",)).weight_for("model.mid.block_1.conv1").bits == 3, "other rules stay"
    assert QuantModel(network, adapter.with_8_bits(W4A4, ("ends", "time")), adapter), "every rule matches a layer"


def test_weights_alone_get_no_rules_for_activations():
    policy = adapter_of("ddim").with_8_bits(QuantPolicy(W4), ("ends",))
    assert policy.act_rules == () and policy.weight_for("model.conv_out").bits == 8


def test_a_name_that_the_family_does_not_have():
    with pytest.raises(KeyError):
        adapter_of("ddim").with_8_bits(W4A4, ("middle",))
