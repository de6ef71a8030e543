"""Copies of networks that share their tensors."""

import copy

from torch import nn


def share_parameters(network: nn.Module) -> nn.Module:
    """Copy a network's modules but not its parameters and buffers, so that leaves of the copy can be replaced."""
    shared = {id(x): x for x in (*network.parameters(), *network.buffers())}
    return copy.deepcopy(network, shared)
