"""What the numbers of a message graph must be: integers, of one length, on one device, inside what they number."""

from __future__ import annotations

import torch

from suture.ir.errors import Code, SutureError

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def integers(tensor: torch.Tensor, what: str) -> torch.Tensor:
    """The numbers as int64.

    :raises SutureError: RELATION, if they are no integers or not in one row
    """
    if not isinstance(tensor, torch.Tensor):
        raise SutureError(Code.RELATION, f"{what} are a {type(tensor).__name__}", remedy="give a tensor of integers")
    if tensor.dtype not in _INTEGERS:
        remedy = "a mask is no index: give mask.nonzero()" if tensor.dtype == torch.bool else "give int64 or int32"
        raise SutureError(Code.RELATION, f"{what} are of {tensor.dtype}", remedy=remedy)
    if tensor.ndim != 1:
        raise SutureError(
            Code.RELATION, f"{what} have the shape {list(tensor.shape)}", remedy="give one number for each"
        )
    return tensor.to(torch.int64)


def inside(tensor: torch.Tensor, count: int, what: str, each: str) -> None:
    """Refuse numbers outside `0` to `count - 1`.

    :raises SutureError: RELATION, with how many there are and where the first is
    """
    if not len(tensor):
        return
    low, high = (int(bound) for bound in torch.aminmax(tensor))
    if low >= 0 and high < count:
        return
    outside = ((tensor < 0) | (tensor >= count)).nonzero().flatten()
    first = int(outside[0])
    allowed = f"there are {count}, so 0 to {count - 1} would be right" if count else "there are none"
    raise SutureError(
        Code.RELATION, f"{len(outside)} of {len(tensor)} {what} are out of range: {int(tensor[first])} at {each} {first}", remedy=allowed
    )  # fmt: skip


def same_length(tensors: dict[str, torch.Tensor]) -> None:
    """Refuse edges whose parts differ in number.

    :raises SutureError: RELATION
    """
    lengths = {what: len(tensor) for what, tensor in tensors.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{length} {what}" for what, length in lengths.items())
        raise SutureError(Code.RELATION, f"edges with {listed}", remedy="every edge has one of each")


def one_device(tensors: dict[str, torch.Tensor]) -> None:
    """Refuse a graph that lies on several devices.

    :raises SutureError: DEVICE
    """
    devices = {what: tensor.device for what, tensor in tensors.items()}
    if len(set(devices.values())) > 1:
        listed = ", ".join(f"{what} on {device}" for what, device in devices.items())
        raise SutureError(Code.DEVICE, f"a graph with {listed}", remedy="move all of it to one device")


def natural(count: object, what: str) -> int:
    """A number of things.

    :raises SutureError: RELATION, if it is no number from zero up
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise SutureError(Code.RELATION, f"{what} is {count!r}", remedy="give a number from zero up")
    return count
