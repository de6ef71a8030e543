"""What this machine can compute, and that others are refused."""

import os
import subprocess
import sys

import pytest
import torch

from qdiff.errors import UserError
from qdiff.execution import machine
from qdiff.execution.machine import LARGEST, check_machine, has_vnni


def test_another_processor_is_refused(monkeypatch):
    monkeypatch.setattr(machine, "machine", lambda: "aarch64")
    with pytest.raises(UserError, match=r"x86 processors, this one is aarch64: use --backend"):
        check_machine()


def test_a_build_without_onednn_is_refused(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"no oneDNN: install PyTorch"):
        check_machine()


def test_the_largest_weight_keeps_pairs_of_products_within_16_bits():
    assert 2 * 255 * LARGEST <= 2**15 - 1 < 2 * 255 * (LARGEST + 1)


@pytest.mark.skipif(not has_vnni(), reason="needs VNNI")
def test_a_processor_without_vnni_is_recognised():
    """oneDNN can be kept from using it, before it is first used."""
    code = "from qdiff.execution import has_vnni; print(has_vnni())"
    env = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"
