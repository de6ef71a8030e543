"""The bits of a network in a few words."""

from torch import nn

from qdiff.policy import QuantPolicy
from qdiff.quant_model import QuantModel


def bits_of(network: nn.Module) -> str:
    """Describe the bits of a network, such as "W4A8, split" or "not quantized"."""
    return policy_bits(network.policy) if isinstance(network, QuantModel) else "not quantized"


def policy_bits(policy: QuantPolicy) -> str:
    """Describe the bits of a policy, such as "W4A8, A16 after softmax, split"."""
    act = policy.act
    parts = {
        f"W{policy.weight.bits}{f'A{act.bits}' if act else ''}": True,
        f"A{policy.softmax_bits} after softmax": act is not None and act.bits != policy.softmax_bits,
        "split": policy.split,
    }
    return ", ".join(part for part, holds in parts.items() if holds)
