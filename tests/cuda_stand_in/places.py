"""Which tensors would be on the GPU, were there one: the stand-in's memory is the CPU's, so that nothing else notices what was left behind.

Tensors are told apart by their storage. Under the mode an operator of torch that mixes both places is refused, as on a GPU; what it makes is where its
operands are. What is made from nothing is on the GPU if a device is named, or under `with place`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode

_READS = frozenset(
    {"data_ptr", "untyped_storage", "numel", "dim", "size", "stride", "storage_offset", "is_contiguous", "__get__", "__set__", "type", "cpu", "numpy",
     "tolist", "item", "__bool__", "__int__", "__float__", "__index__", "__len__", "backward"}
)  # fmt: skip


class Elsewhere(TorchFunctionMode):
    """Follows what is on the GPU. What is moved to the place of something else may be on either side, and is not followed."""

    def __init__(self) -> None:
        super().__init__()
        self._there: dict[int, StorageWeakRef] = {}
        self._either: dict[int, StorageWeakRef] = {}

    def put(self, item: Any) -> Any:
        """Tensors, and the parameters and buffers of modules, as if they had been moved; returns the item."""
        _mark(item, self._there)
        return item

    def may_have(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor is on the GPU for all that is known."""
        return not tensor.numel() or _is_marked(tensor, self._there) or _is_marked(tensor, self._either)

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        name = getattr(function, "__name__", "")
        result = function(*args, **given)
        if name in _READS:
            return result
        if name == "to" and any(isinstance(each, torch.device) for each in (*args, *given.values())):
            return _mark(result.clone(), self._either)
        operands = [each for each in _tensors((args, given)) if each.numel()]
        there = [_is_marked(each, self._there) for each in operands]
        if any(there) and name != "copy_":
            left = [each for each in operands if each.dim() and not self.may_have(each)]
            if left:
                raise RuntimeError(
                    f"{name}: an operand of shape {list(left[0].shape)} is on the CPU, another on the GPU"
                )
        if any(there) or given.get("device") is not None:
            self.put(result)
        elif any(_is_marked(each, self._either) for each in operands):
            _mark(result, self._either)
        return result


def _mark(item: Any, marked: dict[int, StorageWeakRef]) -> Any:
    with torch._C.DisableTorchFunction():
        for each in _tensors(item):
            storage = each.untyped_storage()
            marked[storage._cdata] = StorageWeakRef(storage)
    return item


def _is_marked(tensor: torch.Tensor, marked: dict[int, StorageWeakRef]) -> bool:
    with torch._C.DisableTorchFunction():
        found = marked.get(tensor.untyped_storage()._cdata)
    return found is not None and not found.expired()


def _tensors(item: Any) -> Iterator[torch.Tensor]:
    if isinstance(item, torch.nn.Module):
        yield from (*item.parameters(), *item.buffers())
        return
    plain = (torch.Tensor, torch.nn.Parameter)  # what is traced has no memory
    yield from (each for each in pytree.tree_leaves(item) if type(each) in plain and each.layout == torch.strided)
