"""The MODEL of a command line: a saved graph, an ONNX file, a script, or `package.module:callable`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from suture.cli.guard import usage_error
from suture.frontends.archive import SUFFIX as GRAPH_SUFFIX
from suture.frontends.script.parser import SUFFIX as SCRIPT_SUFFIX
from suture.frontends.script.parser import parse
from suture.ir.errors import SutureError, nearest

if TYPE_CHECKING:
    from suture.frontends.script.ast import TorchSource
    from suture.ir.graph import Graph

ONNX_SUFFIX = ".onnx"
MODEL_HELP = (
    f"package.module:callable (with --input), a *{GRAPH_SUFFIX} or *{ONNX_SUFFIX} file, or a *{SCRIPT_SUFFIX} script"
)


def load_graph(model: str, *, inputs: str, weights: Path | None, args: str, planned: bool) -> Graph:
    """The graph of a saved file or of a traced callable.

    :param inputs: as after `input` in a script: `f32[batch, 3, 224, 224]`
    :param args: as after `args` in a script
    :param planned: shapes are enough
    """
    path = Path(model)
    if path.suffix == GRAPH_SUFFIX:
        from suture.frontends import archive

        return archive.load_graph(path, weights=not planned)
    if ":" not in model:
        known = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
        raise usage_error(
            f"{model!r} is no model", nearest(path.name, known, what="file") if path.suffix else MODEL_HELP
        )
    if not inputs:
        raise usage_error(
            f"{model} needs inputs to be traced with", 'add for example --input "f32[batch, 3, 224, 224]"'
        )
    return _trace(model, inputs, weights, args, planned)


def input_graph(path: Path) -> Graph:
    """A graph that has an ONNX file's inputs and nothing else: what probes are drawn for."""
    from suture.backends.onnx import summarise_onnx
    from suture.ir.graph import Graph
    from suture.ir.sizes import Dim, symbol
    from suture.ir.types import DTYPES, TensorType

    graph = Graph(path.stem)
    for name, kind in summarise_onnx(path).inputs.items():
        dtype, _, body = kind.rstrip("]").partition("[")
        if dtype not in DTYPES:
            raise usage_error(f"the input {name} of {path} is {kind}", "give probes with --on")
        shape: list[Dim] = []
        for size in filter(None, body.split(", ")):
            shape.append(int(size) if size.isdigit() else symbol(size if size.isidentifier() else "unnamed"))
        graph.add_input(name, TensorType(DTYPES[dtype], tuple(shape)))
    return graph


def torch_source(model: str, inputs: str, args: str) -> TorchSource:
    """A callable with its arguments and inputs, as a script would name it.

    :raises SutureError: USAGE, if they do not read
    """
    from suture.frontends.script.ast import Model, TorchSource

    clauses = (f" args {args}" if args else "") + f" input {inputs}"
    source = f'suture 1\nmodel it = torch "{model}"{clauses}\n'
    try:
        (statement,) = parse(source).statements
    except SutureError as error:
        given = f"--input {inputs!r}" + (f" or --args {args!r}" if args else "")
        raise usage_error(f"cannot read {given}: {error.what}", error.remedy) from None
    assert isinstance(statement, Model)
    assert isinstance(statement.source, TorchSource)
    return statement.source


def _trace(model: str, inputs: str, weights: Path | None, args: str, planned: bool) -> Graph:
    from suture.frontends.script.models import build_graph

    graph = build_graph(torch_source(model, inputs, args), Path.cwd(), weights, planned=planned)
    if not planned:
        graph.source = f"{model}{f' args {args}' if args else ''} input {inputs}"
    return graph
