"""Networks that compute with integers, by operators of PyTorch on x86 processors."""

from qdiff.execution.machine import has_vnni
from qdiff.execution.model import LeafArithmetic, execute_integers, executed_leaves

__all__ = ["LeafArithmetic", "execute_integers", "executed_leaves", "has_vnni"]
