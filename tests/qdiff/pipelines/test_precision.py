import pytest
import torch
from torch import nn

from qdiff.errors import UserError
from qdiff.pipelines.precision import precision_of, resolved

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("name", "on_cpu", "on_cuda", "on_older_cuda"),
    [
        ("full", "full", "full", "full"),
        ("autocast", "full", "bf16", "fp16"),
        ("bf16", "bf16", "bf16", "bf16"),
        ("fp16", None, "fp16", "fp16"),
    ],
)
def test_what_a_name_means(name, on_cpu, on_cuda, on_older_cuda, monkeypatch):
    for supported, wanted in ((True, on_cuda), (False, on_older_cuda)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *, including_emulation: supported)  # noqa: B023
        assert resolved(name, CUDA) == wanted
    if on_cpu:
        assert resolved(name, CPU) == on_cpu
    else:
        with pytest.raises(UserError, match="--precision fp16 needs CUDA"):
            resolved(name, CPU)


def test_a_network_computes_with_it_again_and_again():
    layer, x = nn.Linear(2, 2), torch.randn(1, 2)
    for name, dtype in (("full", torch.float32), ("bf16", torch.bfloat16)):
        context = precision_of(name, CPU)
        for _ in range(2):
            with context:
                assert layer(x).dtype == dtype
        assert layer(x).dtype == torch.float32
