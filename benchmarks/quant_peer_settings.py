"""ONNX Runtime's own quantiser: its defaults, and the settings that are worth trying on a processor with 8-bit dot products."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

MULTIPLY = ("MatMul", "Gemm", "Conv")


@contextlib.contextmanager
def silence() -> Iterator[None]:
    logging.disable(logging.WARNING)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
    logging.disable(logging.NOTSET)


class Reader:
    """Calibration data as `quantize_static` reads them: one example a batch, or a few."""

    def __init__(self, data: Mapping[str, Tensor], size: int) -> None:
        count = len(next(iter(data.values())))
        self.batches = iter(
            [{name: tensor[k : k + size].numpy() for name, tensor in data.items()} for k in range(0, count, size)]
        )

    def get_next(self) -> dict[str, Any] | None:
        return next(self.batches, None)

    def set_range(self, start_index: int, end_index: int) -> None:
        raise NotImplementedError


def settings(observers: Sequence[str], *, quick: bool) -> dict[str, dict[str, Any]]:
    """Options of `quantize_static` by a name that says what they are."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType

    u8s8 = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "per_channel": True}
    found: dict[str, dict[str, Any]] = {"defaults": {}, "u8s8": u8s8}
    found["u8s8, multiplications only"] = u8s8 | {"op_types_to_quantize": list(MULTIPLY)}
    if quick:
        return found
    operator = {"quant_format": QuantFormat.QOperator}
    found["u8s8, QOperator"] = u8s8 | operator
    found["u8s8, QOperator, multiplications only"] = u8s8 | operator | {"op_types_to_quantize": list(MULTIPLY)}
    found["u8s8, per tensor"] = u8s8 | {"per_channel": False}
    for name in observers:
        if name == "MinMax":
            continue
        method = {"calibrate_method": getattr(CalibrationMethod, name)}
        found[f"u8s8, {name.lower()}"] = u8s8 | method
        found[f"u8s8, multiplications only, {name.lower()}"] = u8s8 | method | {"op_types_to_quantize": list(MULTIPLY)}
    return found


def writers(
    source: Path, data: Mapping[str, Tensor], observers: Sequence[str], *, batch: int, quick: bool
) -> dict[str, Callable[[Path], None]]:
    """What writes each quantised file, from a float file that is prepared as ONNX Runtime's documentation advises."""
    from onnxruntime.quantization import quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = source.with_name(f"{source.stem}-prepared.onnx")
    with silence(), contextlib.chdir(source.parent):  # it leaves files where it runs
        try:
            quant_pre_process(str(source), str(prepared))
        except Exception:  # its symbolic shape inference knows no operator of opset 20 or later by name
            quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)

    def write(options: dict[str, Any], path: Path) -> None:
        with silence():
            quantize_static(str(prepared), str(path), Reader(data, batch), **options)

    return {
        name: (lambda path, options=options: write(options, path))  # type: ignore[misc]
        for name, options in settings(observers, quick=quick).items()
    }
