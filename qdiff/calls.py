"""Calls of modules and their outputs, for a batch of samples: trees of tensors and constants."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten

S = TypeVar("S", bound="Samples")


class BatchMismatch(ValueError):
    """Two batches differ in more than the values and the number of their samples."""


class Samples:
    """What a module takes or returns for N samples: a tree (tuples, lists, dicts) of tensors and constants.

    A tensor whose first dimension is N holds samples. Every other leaf (None, a number, a string, a tensor without that
    dimension) is a constant, the same for all samples. Nothing here is changed after construction or copied by it.

    Args:
        tree: any pytree, see `torch.utils._pytree`.
        size: N; by default the first dimension of the first tensor that has one.

    Raises:
        ValueError: no tensor has N as its first dimension.
    """

    def __init__(self, tree: Any, size: int | None = None):
        self._leaves, self._spec = tree_flatten(tree)
        lengths = {i: len(x) for i, x in enumerate(self._leaves) if isinstance(x, Tensor) and x.ndim}
        size = next(iter(lengths.values()), None) if size is None else size
        self._places = [i for i, length in lengths.items() if length == size]
        if not self._places:
            raise ValueError(f"no tensor has the batch ({size}) as its first dimension: {self}")

    @property
    def tree(self) -> Any:
        """The tree itself, with the tensors as they are now."""
        return tree_unflatten(self._leaves, self._spec)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors that hold samples, each (N, ...), in the order of the tree."""
        return tuple(self._leaves[i] for i in self._places)

    @property
    def constants(self) -> tuple[Any, ...]:
        """All other leaves, in the order of the tree."""
        return tuple(x for i, x in enumerate(self._leaves) if i not in self._places)

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample."""
        return sum(x.shape[1:].numel() * x.element_size() for x in self.tensors)

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(_shown, self._leaves))})"

    def map(self: S, function: Callable[[Tensor], Tensor]) -> S:
        """Return the same tree with `function` applied to every tensor (N, ...) that holds samples."""
        leaves = list(self._leaves)
        for i in self._places:
            leaves[i] = function(leaves[i])
        return self._with(leaves, self._places)

    def __getitem__(self: S, index: slice | Tensor) -> S:
        """Return some of the samples: those of a slice, or of indices, shape (n,)."""
        if isinstance(index, slice):
            return self.map(lambda x: x[index])
        return self.map(lambda x: x.index_select(0, index.to(x.device)))  # faster than x[index] on a CPU

    def batches(self: S, size: int) -> Iterator[S]:
        """Yield all samples in order, `size` at a time; the last batch may be smaller."""
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def to(self: S, device: torch.device | str, *, copy: bool = False) -> S:
        """Return the same tree with every tensor, constants included, on a device; "meta" leaves shapes only."""
        return self._with(tree_map_only(Tensor, lambda x: x.to(device, copy=copy), self._leaves), self._places)

    def empty(self: S, size: int) -> S:
        """Return the same tree for `size` samples without values."""
        return self.map(lambda x: x.new_empty((size, *x.shape[1:])))

    def select(self, tree: Any) -> list[Tensor]:
        """Return the tensors (N, ...) of another tree of this structure where this one has samples."""
        leaves = tree_leaves(tree)
        return [leaves[i] for i in self._places]

    def with_constants_of(self: S, other: "Samples") -> S:
        """Return self with those tensors as constants that hold no samples in `other`.

        A constant may have N as its first dimension by chance. Of two batches of different sizes only one can.

        Raises:
            BatchMismatch: the trees have different structures, or no tensor is left.
        """
        places = [i for i in self._places if i in other._places]
        if self._spec != other._spec or not places:
            raise BatchMismatch("two batches differ in more than their size")
        return self._with(self._leaves, places)

    def like(self: S, other: "Samples") -> S:
        """Return self, another batch than `other`, with its tensors taken as samples or constants as there.

        Raises:
            BatchMismatch: structure, shape, dtype or constants differ between the two.
        """
        forms = [_form(self._leaves[i]) for i in other._places] if self._spec == other._spec else []
        if forms != [_form(x) for x in other.tensors]:
            raise BatchMismatch(f"two batches differ in structure, shape or dtype: {other} and {self}")
        found = self._with(self._leaves, other._places)
        if len({len(x) for x in found.tensors}) != 1:
            raise BatchMismatch(f"a batch has different numbers of samples: {found}")
        for a, b in zip(found.constants, other.constants):
            if not _same(a, b):
                raise BatchMismatch(f"two batches differ in a constant: {_shown(b)} and {_shown(a)}")
        return found

    def _with(self: S, leaves: list[Any], places: list[int]) -> S:
        other = copy.copy(self)
        other._leaves, other._places = leaves, places
        return other


class Call(Samples):
    """The arguments of a module's call for N samples.

    Args:
        args, kwargs: positional and keyword arguments, trees of tensors and constants.
        size: N, see `Samples`.

    Raises:
        ValueError: see `Samples`.
    """

    def __init__(self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, size: int | None = None):
        super().__init__((tuple(args), dict(kwargs or {})), size)

    @property
    def args(self) -> tuple[Any, ...]:
        """The positional arguments."""
        return self.tree[0]

    @property
    def kwargs(self) -> dict[str, Any]:
        """The keyword arguments."""
        return self.tree[1]

    def __call__(self, module: Callable[..., Any]) -> Any:
        """Call a module, or any function, with these arguments, and return what it returns."""
        args, kwargs = self.tree
        return module(*args, **kwargs)


def detached(tree: Any) -> Any:
    """Return the same tree with its tensors detached from their gradients."""
    return tree_map_only(Tensor, Tensor.detach, tree)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return a is b or (type(a) is type(b) and bool(a == b))


def _form(x: Any) -> tuple[torch.dtype, torch.Size] | None:
    """Return dtype and shape of one sample; None for what cannot hold any."""
    return (x.dtype, x.shape[1:]) if isinstance(x, Tensor) and x.ndim else None


def _shown(x: Any) -> str:
    return f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else repr(x)
