"""`export_onnx`: emit, store the weights, check, and put the file in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from suture.backends.onnx.emitter import HIGHEST, LOWEST, Emitter
from suture.backends.onnx.profile import Profile, ProfileName, find_profile
from suture.backends.onnx.provenance import provenance, version
from suture.backends.onnx.storage import external_pieces, external_tensors, model_pieces
from suture.backends.onnx.weights import Weight
from suture.backends.onnx.writing import staged, write_pieces
from suture.ir.bind_sizes import bind_sizes
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph

if TYPE_CHECKING:
    import onnx

_LIMIT = 2**31 - 2**24  # protobuf's limit, less room for the graph itself
_SMALL = 1024  # bytes up to which a tensor stays in the graph's own file


def export_onnx(
    graph: Graph,
    path: str | Path,
    *,
    opset: int = 21,
    external_data: bool | Literal["auto"] = "auto",
    profile: ProfileName = "portable",
    sizes: Mapping[str, int] | tuple[str, ...] = (),
    choices: Mapping[str, str] | tuple[str, ...] = (),
) -> Path:
    """Write a graph as an ONNX file. The file is there whole or not at all.

    :param opset: the ONNX operator set, 17 to 23
    :param external_data: whether the weights stand in a file `<path>.data` beside it; `"auto"` does so beyond 2 GB, where ONNX must
    :param profile: the target: `portable` takes ONNX's own operators only, `onnxruntime` ONNX Runtime's contributed ones too, `mobile` few
        operators and no symbolic size
    :param sizes: numbers for symbolic sizes, as `{"batch": 1}` or, in scripts, `"batch=1"`
    :param choices: single choices of the profile replaced, as `{"linear": "gemm"}` or `"linear=gemm"`
    :returns: the path of the file
    :raises SutureError: ONNX_EXPORT, if the operator set cannot express an operator; PROFILE, if the profile cannot, or must have a size that is
        symbolic; WRITE, if the file cannot be written
    """
    from onnx_ir.serde import serialize_model

    target = Path(path)
    wanted = find_profile(profile).with_choices(pairs(choices, "choice", "linear=gemm"))
    if not LOWEST <= opset <= HIGHEST:
        raise SutureError(
            Code.ONNX_EXPORT,
            f"no rules for opset {opset}",
            where=str(target),
            remedy=f"{LOWEST} to {HIGHEST} would be right",
        )
    bound = _bound(graph, numbers(sizes), wanted)
    emitter = Emitter(bound, opset, wanted)
    model = emitter.emit()
    model.producer_version = version()
    model.metadata_props.update(provenance(graph) | {"suture.profile": wanted.name})
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


def pairs(given: Mapping[str, str] | tuple[str, ...], what: str, example: str) -> dict[str, str]:
    """Options by name, also where they are written `name=value`."""
    if isinstance(given, Mapping):
        return {str(name): value for name, value in given.items()}
    pairs: dict[str, str] = {}
    for item in given:
        name, sign, value = item.partition("=")
        if not sign:
            raise SutureError(Code.OPTION, f"{item!r} is no {what}", remedy=f"{example!r} would be right")
        pairs[name.strip()] = value.strip()
    return pairs


def numbers(sizes: Mapping[str, int] | tuple[str, ...]) -> dict[str, int]:
    """Numbers for sizes by name, also where they are written `name=number`."""
    if isinstance(sizes, Mapping):
        return dict(sizes)
    written = pairs(sizes, "size", "batch=1")
    for name, text in written.items():
        if not text.isdecimal():
            raise SutureError(Code.OPTION, f"the size {name} cannot be {text!r}", remedy="a number would be right")
    return {name: int(text) for name, text in written.items()}


def bound_graph(graph: Graph, sizes: Mapping[str, int] | tuple[str, ...], profile: str | Profile) -> Graph:
    """The graph with sizes bound, as the exporter does it; all of them, where the profile must have numbers.

    :raises SutureError: OPTION, for what is no size; PROFILE, for a size that is symbolic and must not be
    """
    return _bound(graph, numbers(sizes), find_profile(profile))


def _bound(graph: Graph, sizes: Mapping[str, int], profile: Profile) -> Graph:
    """The graph with sizes bound; all of them, where the profile must have numbers."""
    open_ = [name for name in graph.symbols() if name not in sizes]
    if profile.static and open_:
        raise SutureError(
            Code.PROFILE,
            f"the profile {profile.name} must have numbers for the sizes {', '.join(open_)}",
            where=graph.name,
            remedy=f"sizes {', '.join(f'{name}={graph.hints.get(name, 1)}' for name in open_)} would be right",
        )
    return bind_sizes(graph, sizes) if sizes else graph


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
