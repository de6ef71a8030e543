import pytest
import torch
from torch import nn

from qdiff.analysis.watching import check_full_precision, layers, quantized_network, sites, summary_of, watching
from qdiff.policy import QuantPolicy, QuantSpec


def test_calls_are_seen_inside_and_not_after():
    network, seen = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)), []
    x = torch.ones(3, 2)
    with watching(
        {"a": network[0], "b": network[1]}, lambda path, inputs, output: seen.append((path, *inputs, output))
    ):
        y = network(x)
    network(x)
    (a, x_a, y_a), (b, x_b, y_b) = seen
    assert (a, b) == ("a", "b") and x_a is x and x_b is y_a and y_b is y


def test_nothing_is_seen_after_an_error():
    layer, seen = nn.Linear(2, 2), []
    with pytest.raises(RuntimeError), watching({"a": layer}, lambda *call: seen.append(call)):
        layer(torch.ones(3, 5))
    layer(torch.ones(3, 2))
    assert seen == []


def test_names_are_those_of_the_quantized_network(pipelines):
    network = pipelines.w4.network
    assert network.policy.act == QuantSpec(8, range_search="minmax")  # so that every site is quantized
    assert list(layers(pipelines.fp.network)) == list(network.layers())
    quantized = [f"{s.path}{s.name.removeprefix('act_quantizer').replace('_', '.')}" for s in network.sites()]
    found = [name for _, names in sites(pipelines.fp.network).values() for name in names]
    assert found == quantized and any(name.endswith(".w") for name in found)
    rules = tuple((name, 6) for name in found)  # names are those that rules take
    QuantPolicy(act=QuantSpec(8), act_rules=rules).check_rules(list(network.layers()), [*found])


def test_a_pipeline_of_the_other_kind_is_refused(pipelines):
    with pytest.raises(ValueError, match="is quantized: give one in full precision"):
        check_full_precision(pipelines.w4)
    with pytest.raises(ValueError, match="is in full precision: give one whose network is quantized"):
        quantized_network(pipelines.fp, pipelines.fp)
    with pytest.raises(ValueError, match=r"sample differently, .*steps=4.* and .*steps=2"):
        quantized_network(pipelines.w4.with_sampling(steps=2), pipelines.fp)


def test_a_summary_keeps_the_extremes_and_every_few_values():
    x = torch.arange(2**18, dtype=torch.float32).reshape(2, -1) - 7
    low, high, values = summary_of(x)
    assert (low.item(), high.item()) == (-7, 2**18 - 8)
    assert values.shape[1] <= 2**16 and torch.equal(values[0, :3], torch.tensor([-7.0, -2.0, 3.0]))
    assert values.untyped_storage().nbytes() == values.nbytes  # no view of x
