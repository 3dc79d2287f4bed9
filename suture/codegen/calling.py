"""Calling a compiled kernel with tensors: sizes are read off their shapes, and everything is checked before anything runs."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from typing import Any

import torch

from suture.codegen.expressions import C_TYPES
from suture.ir.errors import Code, SutureError
from suture.ir.kernel import INDEX, Apply, Buffer, Expression, Kernel, Literal, Name
from suture.ir.types import DTYPE_NAMES

_SCALARS = {"float": ctypes.c_float, "double": ctypes.c_double, "k_i32": ctypes.c_int32}


class CompiledKernel:
    """A kernel as a function of tensors; it writes into those that the kernel writes.

    :param function: the C function of the kernel's name
    """

    def __init__(self, kernel: Kernel, function: Callable[..., Any]) -> None:
        self.kernel = kernel
        self._function = function
        function.restype = None  # type: ignore[attr-defined]
        function.argtypes = [  # type: ignore[attr-defined]
            *[ctypes.c_int64] * len(kernel.sizes),
            *[_SCALARS.get(C_TYPES[each.dtype], ctypes.c_int64) for each in kernel.scalars],
            *[ctypes.c_void_p] * len(kernel.arguments),
        ]

    def __call__(self, *tensors: torch.Tensor, **scalars: float) -> None:
        """Run it.

        :param tensors: one for each argument, in order
        :raises SutureError: INPUT, if a tensor is missing, of another type, shape or device, or not contiguous
        """
        sizes = self.bind(*tensors)
        missing = [each.name for each in self.kernel.scalars if each.name not in scalars]
        if missing:
            raise SutureError(
                Code.INPUT,
                f"the number {missing[0]} is missing",
                where=f"kernel {self.kernel.name}",
                remedy="give it by name",
            )
        numbers = [scalars[each.name] for each in self.kernel.scalars]
        self._function(
            *(sizes[each.name] for each in self.kernel.sizes), *numbers, *(each.data_ptr() for each in tensors)
        )

    def bind(self, *tensors: torch.Tensor) -> Mapping[str, int]:
        """The sizes that the tensors' shapes say."""
        where = f"kernel {self.kernel.name}"
        if len(tensors) != len(self.kernel.arguments):
            names = ", ".join(each.name for each in self.kernel.arguments)
            raise SutureError(Code.INPUT, f"{len(tensors)} tensors", where=where, remedy=f"it takes {names}")
        sizes: dict[str, int] = {}
        for buffer, tensor in zip(self.kernel.arguments, tensors, strict=True):
            _check(buffer, tensor, where)
            for dim, size in zip(buffer.shape, tensor.shape, strict=True):
                if isinstance(dim, Name) and sizes.setdefault(dim.name, size) != size:
                    raise SutureError(
                        Code.INPUT, f"{buffer.name} has {size} where {dim.name} is {sizes[dim.name]}", where=where, remedy="shapes must agree"
                    )  # fmt: skip
        for buffer, tensor in zip(self.kernel.arguments, tensors, strict=True):
            for dim, size in zip(buffer.shape, tensor.shape, strict=True):
                if (wanted := _number(dim, sizes)) != size:
                    raise SutureError(
                        Code.INPUT,
                        f"{buffer.name} has {size} where {wanted} is right",
                        where=where,
                        remedy="shapes must agree",
                    )
        return sizes


def _check(buffer: Buffer, tensor: torch.Tensor, where: str) -> None:
    wanted = f"{DTYPE_NAMES[buffer.dtype]} of rank {len(buffer.shape)} on the CPU, contiguous"
    fits = tensor.dtype == buffer.dtype and tensor.ndim == len(buffer.shape)
    if not fits or tensor.device.type != "cpu" or not tensor.is_contiguous():
        found = f"{DTYPE_NAMES.get(tensor.dtype, tensor.dtype)}{list(tensor.shape)} on {tensor.device}"
        state = "" if tensor.is_contiguous() else ", not contiguous"
        raise SutureError(
            Code.INPUT, f"{buffer.name} is {found}{state}", where=where, remedy=f"{wanted} would be right"
        )


def _number(dim: Expression, sizes: Mapping[str, int]) -> int:
    """A size in numbers."""
    match dim:
        case Literal(value):
            return int(value)
        case Name(name):
            return sizes[name]
        case Apply(function, (left, right)) if dim.dtype == INDEX:
            a, b = _number(left, sizes), _number(right, sizes)
            return {
                "+": a + b,
                "-": a - b,
                "*": a * b,
                "//": a // b if b else 0,
                "%": a % b if b else 0,
                "min": min(a, b),
                "max": max(a, b),
            }[function]
    raise AssertionError(f"{dim} is no size")
