"""Packs integer codes of few bits, several to a byte."""

import torch
import torch.nn.functional as F
from torch import Tensor

PER_BYTE = {2: 4, 3: 2, 4: 2, 5: 1, 6: 1, 7: 1, 8: 1}  # bits -> codes in a byte; 3 bits take as much as 4


def _shifts(bits: int, device: torch.device) -> Tensor:
    per_byte = PER_BYTE[bits]
    return torch.arange(per_byte, dtype=torch.uint8, device=device) * (8 // per_byte)


def packed_size(numel: int, bits: int) -> int:
    """Return the number of bytes that `numel` codes take."""
    return -(-numel // PER_BYTE[bits])


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack offset codes into bytes, the first of each byte in its lowest bits; the last byte is padded with zeros.

    Args:
        codes: uint8 of any shape, each in 0..2^bits - 1.
        bits: 2..8.

    Returns:
        uint8 of shape (packed_size,).

    Raises:
        ValueError: a code that `bits` cannot hold.
    """
    if codes.numel() and int(codes.max()) >> bits:
        raise ValueError(f"code {int(codes.max())} does not fit into {bits} bits")
    rows = F.pad(codes.flatten(), (0, -codes.numel() % PER_BYTE[bits])).view(-1, PER_BYTE[bits])
    return (rows << _shifts(bits, codes.device)).sum(1, dtype=torch.uint8)


def unpack(packed: Tensor, bits: int, shape: tuple[int, ...]) -> Tensor:
    """Unpack what `pack` returned.

    Args:
        packed: uint8 of shape (packed_size,).
        bits: 2..8.
        shape: of the codes.

    Returns:
        uint8 of `shape`.

    Raises:
        ValueError: `packed` has another type or number of bytes.
    """
    numel = torch.Size(shape).numel()
    if packed.dtype != torch.uint8 or packed.shape != (packed_size(numel, bits),):
        raise ValueError(f"{numel} codes of {bits} bits are not {packed.dtype} of shape {tuple(packed.shape)}")
    mask = 2 ** (8 // PER_BYTE[bits]) - 1
    return ((packed[:, None] >> _shifts(bits, packed.device)) & mask).flatten()[:numel].reshape(shape)
