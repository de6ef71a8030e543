from torch import nn

from qdiff.pipelines.bits import bits_of, policy_bits
from qdiff.policy import QuantPolicy, QuantSpec


def policy(bits: int, act_bits: int | None = None, softmax_bits: int = 8, split: bool = False) -> QuantPolicy:
    act = None if act_bits is None else QuantSpec(act_bits)
    return QuantPolicy(QuantSpec(bits, per_channel=True, range_search="minmax"), act, softmax_bits, split)


def test_bits_of_a_policy():
    assert policy_bits(policy(4)) == "W4"
    assert policy_bits(policy(4, 6)) == "W4A6, A8 after softmax"
    assert policy_bits(policy(8, 8, 16, split=True)) == "W8A8, A16 after softmax, split"
    assert bits_of(nn.Identity()) == "not quantized"
