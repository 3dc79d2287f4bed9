"""`export_onnx`: emit, store the weights, check, and put the file in place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from suture.backends.onnx.emitter import HIGHEST, LOWEST, Emitter
from suture.backends.onnx.provenance import provenance, version
from suture.backends.onnx.storage import external_pieces, external_tensors, model_pieces
from suture.backends.onnx.weights import Weight
from suture.backends.onnx.writing import staged, write_pieces
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph

if TYPE_CHECKING:
    import onnx

_LIMIT = 2**31 - 2**24  # protobuf's limit, less room for the graph itself
_SMALL = 1024  # bytes up to which a tensor stays in the graph's own file


def export_onnx(
    graph: Graph, path: str | Path, *, opset: int = 21, external_data: bool | Literal["auto"] = "auto"
) -> Path:
    """Write a graph as an ONNX file. The file is there whole or not at all.

    :param opset: the ONNX operator set, 17 to 23
    :param external_data: whether the weights stand in a file `<path>.data` beside it; `"auto"` does so beyond 2 GB, where ONNX must
    :returns: the path of the file
    :raises SutureError: ONNX_EXPORT, if the operator set cannot express an operator; WRITE, if the file cannot be written
    """
    from onnx_ir.serde import serialize_model

    target = Path(path)
    if not LOWEST <= opset <= HIGHEST:
        raise SutureError(
            Code.ONNX_EXPORT,
            f"no rules for opset {opset}",
            where=str(target),
            remedy=f"{LOWEST} to {HIGHEST} would be right",
        )
    emitter = Emitter(graph, opset)
    model = emitter.emit()
    model.producer_version = version()
    model.metadata_props.update(provenance(graph))
    weights = list(emitter.weights.values())
    total = sum(weight.bytes for weight in weights)
    if external_data is False and total > _LIMIT:
        raise SutureError(
            Code.ONNX_EXPORT,
            f"{total:,} bytes of weights do not fit one ONNX file",
            where=str(target),
            remedy="external_data=True would be right",
        )
    outside = total > _LIMIT if external_data == "auto" else external_data
    with staged(target) as stage:
        written = stage / target.name
        _write(written, serialize_model(model), weights, stage / f"{target.name}.data" if outside else None)
        _check(written, target, full=total <= _LIMIT)
    return target


def _write(path: Path, model: onnx.ModelProto, weights: Sequence[Weight], data: Path | None) -> None:
    """Write the graph with its tensors; the larger ones into `data`, if that is given."""
    inside = [weight for weight in weights if data is None or weight.bytes <= _SMALL]
    if data is not None:
        outside = [weight for weight in weights if weight.bytes > _SMALL]
        model.graph.initializer.extend(external_tensors(outside, data.name))
        write_pieces(data, external_pieces(outside))
    write_pieces(path, model_pieces(model, inside))


def _check(written: Path, target: Path, *, full: bool) -> None:
    """Hold the file against ONNX's own checker; shape inference needs the whole file in memory, so not beyond 2 GB."""
    import onnx

    try:
        onnx.checker.check_model(str(written), full_check=full)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        first = str(error).strip().splitlines()
        raise SutureError(
            Code.ONNX_EXPORT,
            f"the file made does not pass onnx.checker: {first[0] if first else type(error).__name__}",
            where=str(target),
            remedy="nothing was written; please report this",
        ) from error
