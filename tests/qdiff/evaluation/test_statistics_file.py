from pathlib import Path

import pytest
import torch

from qdiff.errors import UserError
from qdiff.evaluation.metrics import Statistics
from qdiff.evaluation.statistics_file import read_statistics, write_statistics

BUNDLED = Path(__file__).parents[3] / "models" / "features" / "emoji32"


def test_statistics_survive_their_file(tmp_path):
    path = tmp_path / "reference.safetensors"
    kept = Statistics(torch.rand(3).double(), torch.rand(3, 3).double(), 7)
    write_statistics(path, kept)
    mu, sigma, n = read_statistics(path)
    assert torch.equal(mu, kept.mu) and torch.equal(sigma, kept.sigma) and n == 7
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"reference\.safetensors' cannot be read as safetensors"):
        read_statistics(path)
    with pytest.raises(UserError, match="cannot read"):
        read_statistics(tmp_path / "none.safetensors")
    with pytest.raises(UserError, match="does not hold feature statistics"):
        read_statistics(BUNDLED / "classifier.safetensors")
