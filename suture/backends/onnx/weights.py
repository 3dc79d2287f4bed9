"""The tensors of an ONNX file: made one at a time, when they are written."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from suture.ir.errors import Code, SutureError
from suture.ir.types import DTYPE_NAMES

if TYPE_CHECKING:
    import onnx
    import onnx_ir


def onnx_type(dtype: torch.dtype, where: str = "") -> onnx_ir.DataType:
    """ONNX's name of an element type.

    :raises SutureError: ONNX_EXPORT, for complex numbers, which ONNX cannot compute with
    """
    import onnx_ir as ir

    if dtype.is_complex:
        raise SutureError(
            Code.ONNX_EXPORT,
            f"ONNX has no operators on {DTYPE_NAMES.get(dtype, dtype)}",
            where=where,
            remedy="keep real and imaginary parts apart",
        )
    return ir.tensor_adapters.from_torch_dtype(dtype)


@dataclass(frozen=True)
class Weight:
    """One initialiser: its ONNX value, its type, and how to make its numbers."""

    value: onnx_ir.Value
    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], torch.Tensor]

    @property
    def name(self) -> str:
        """Its name in the file."""
        return str(self.value.name)

    @property
    def bytes(self) -> int:
        """Its size in the file."""
        return math.prod(self.shape) * self.dtype.itemsize

    def raw(self) -> memoryview:
        """The numbers as bytes, without a copy where the tensor is contiguous already."""
        flat = self.make().detach().cpu().contiguous().reshape(-1)
        return memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]

    def proto(self) -> onnx.TensorProto:
        """Its head: everything but the numbers."""
        import onnx

        return onnx.TensorProto(name=self.name, data_type=int(onnx_type(self.dtype, self.name)), dims=self.shape)


def scalar_name(tensor: torch.Tensor) -> str:
    """A name that says what a small constant holds: `f32_0.5`, `i64_0_-1_64`."""
    kind = DTYPE_NAMES.get(tensor.dtype, "constant")
    if tensor.numel() > 6:
        return f"{kind}_constant"
    return "_".join(
        [kind, *(f"{number:g}" if isinstance(number, float) else str(number) for number in tensor.reshape(-1).tolist())]
    )
