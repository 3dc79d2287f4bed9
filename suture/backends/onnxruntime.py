"""Running ONNX files, by ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from suture.ir.errors import Code, SutureError

_TYPES = {
    "tensor(float)": torch.float32, "tensor(double)": torch.float64, "tensor(float16)": torch.float16, "tensor(bool)": torch.bool,
    "tensor(int64)": torch.int64, "tensor(int32)": torch.int32, "tensor(int16)": torch.int16, "tensor(int8)": torch.int8,
    "tensor(uint8)": torch.uint8,
}  # fmt: skip


class OnnxModel:
    """An ONNX file, loaded and ready to run.

    :param path: the file; its external data must lie in its own folder
    :param threads: how many threads one operator may use; ONNX Runtime's own choice if 0
    :raises SutureError: FILE, ONNX_FILE or PATH, if the file is not there, broken, or points outside its folder; RUNTIME, if ONNX Runtime refuses it
    """

    def __init__(self, path: str | Path, *, threads: int = 0) -> None:
        from suture.backends.onnx.reading import read_proto

        self.path = Path(path)
        read_proto(self.path)
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what goes wrong is raised
        options.intra_op_num_threads = threads
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(self.path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's errors share no base class
            raise self._refused(error) from None
        self.inputs: dict[str, str] = {item.name: item.type for item in self._session.get_inputs()}
        self.shapes: dict[str, tuple[int | str | None, ...]] = {
            item.name: tuple(item.shape) for item in self._session.get_inputs()
        }
        self.outputs: list[str] = [item.name for item in self._session.get_outputs()]

    def run(self, inputs: Sequence[torch.Tensor] | Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
        """Run the model on tensors in order or by name.

        :raises SutureError: INPUT, if they do not fit; RUNTIME, if ONNX Runtime fails
        """
        feed = self.feed(inputs)
        try:
            results = self._session.run(None, feed)
        except Exception as error:  # as above
            raise self._refused(error) from None
        return [
            torch.from_numpy(result)
            if result.ndim
            else torch.tensor(result.item(), dtype=torch.from_numpy(result[None]).dtype)
            for result in results
        ]

    def feed(self, inputs: Sequence[torch.Tensor] | Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """Tensors in order or by name as the arrays that ONNX Runtime takes.

        :raises SutureError: INPUT, if they do not fit
        """
        return {name: self._array(name, tensor) for name, tensor in self._named(inputs).items()}

    def zeros(self, size: int) -> dict[str, torch.Tensor]:
        """Zeros for every input, with one number for all symbolic sizes."""
        return {
            name: torch.zeros(
                [dim if isinstance(dim, int) else size for dim in shape],
                dtype=_TYPES.get(self.inputs[name], torch.float32),
            )
            for name, shape in self.shapes.items()
        }

    def _named(self, inputs: Sequence[torch.Tensor] | Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        names = list(self.inputs)
        given = dict(inputs) if isinstance(inputs, Mapping) else dict(zip(names, inputs, strict=False))
        if set(given) != set(names) or len(inputs) != len(names):
            shown = ", ".join(given) if isinstance(inputs, Mapping) else f"{len(inputs)} tensors"
            raise SutureError(
                Code.INPUT, f"the inputs are {shown}", where=str(self.path), remedy=f"{', '.join(names)} would be right"
            )
        return given

    def _array(self, name: str, tensor: torch.Tensor) -> Any:
        wanted = _TYPES.get(self.inputs[name])
        if wanted is None:
            raise SutureError(
                Code.RUNTIME,
                f"input {name} has the type {self.inputs[name]}",
                where=str(self.path),
                remedy="use a type that NumPy has",
            )
        if tensor.dtype != wanted and not (tensor.dtype.is_floating_point and wanted.is_floating_point):
            raise SutureError(
                Code.INPUT, f"input {name} is {tensor.dtype}", where=str(self.path), remedy=f"{wanted} would be right"
            )
        return tensor.detach().cpu().to(wanted).contiguous().numpy()

    def _refused(self, error: Exception) -> SutureError:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return SutureError(
            Code.RUNTIME,
            f"ONNX Runtime refuses it: {lines[0] if lines else type(error).__name__}",
            where=str(self.path),
            remedy="use operators and inputs that it supports",
        )
