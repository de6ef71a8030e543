"""Exact sums of products need VNNI."""

import pytest

from qdiff.execution import has_vnni

EXACT = {"test_codes", "test_layers", "test_products"}  # whose sums overflow without VNNI


@pytest.fixture(autouse=True)
def vnni(request):
    """Skip what computes products directly; `execute_integers` leaves those that would overflow in floating point."""
    if request.module.__name__.rpartition(".")[2] in EXACT and not has_vnni():
        pytest.skip("this processor has no VNNI")
