"""Packing against arithmetic on Python integers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qdiff.packing import pack, packed_size, unpack

BITS = st.integers(2, 8)
SHAPES = st.lists(st.integers(0, 5), min_size=1, max_size=4)


@st.composite
def codes(draw):
    bits, shape = draw(BITS), draw(SHAPES)
    numel = torch.Size(shape).numel()
    values = draw(st.lists(st.integers(0, 2**bits - 1), min_size=numel, max_size=numel))
    return bits, torch.tensor(values, dtype=torch.uint8).reshape(shape)


@given(codes())
def test_codes_come_back(case):
    bits, x = case
    packed = pack(x, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (packed_size(x.numel(), bits),)
    found = unpack(packed, bits, tuple(x.shape))
    assert found.dtype == torch.uint8
    assert torch.equal(found, x)


@given(codes())
def test_the_bytes_are_one_little_endian_number(case):
    bits, x = case
    room = {2: 2, 3: 4, 4: 4}.get(bits, 8)  # bits that a code takes in the file
    number = sum(code << room * i for i, code in enumerate(x.flatten().tolist()))
    assert bytes(pack(x, bits).tolist()) == number.to_bytes(-(-x.numel() * room // 8), "little")


@pytest.mark.parametrize("bits", range(2, 8))
def test_a_code_that_does_not_fit_is_refused(bits):
    pack(torch.tensor([2**bits - 1], dtype=torch.uint8), bits)
    with pytest.raises(ValueError, match=f"code {2**bits}.*{bits} bits"):
        pack(torch.tensor([0, 2**bits], dtype=torch.uint8), bits)


@pytest.mark.parametrize(
    "packed", [torch.zeros(1, dtype=torch.uint8), torch.zeros(3, dtype=torch.uint8), torch.zeros(2)]
)
def test_another_number_of_bytes_is_refused(packed):
    with pytest.raises(ValueError, match="3 codes of 4 bits"):
        unpack(packed, 4, (3,))
