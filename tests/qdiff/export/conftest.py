"""Engines compute with integers here."""

import pytest

from qdiff.execution import has_vnni


@pytest.fixture(autouse=True)
def vnni():
    """Without VNNI, engines add up products in 16 bits, which overflow."""
    if not has_vnni():
        pytest.skip("this processor has no VNNI")
