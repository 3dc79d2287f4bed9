"""The command `build`, and `suture show MODEL --kernels`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from suture.cli.application import EPILOG, Args, Inputs, Json, ModelName, Quiet, Trace, Weights, app
from suture.cli.display import print_json
from suture.cli.guard import guarded, usage_error

if TYPE_CHECKING:
    from suture.backends.standalone import Target

TARGETS = ("cpp", "cuda")
TargetOption = Annotated[str, typer.Option("--target", help="cpp for processors, cuda for NVIDIA GPUs.")]


@app.command(epilog=EPILOG)
@guarded
def build(
    model: ModelName,
    to: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new folder, or one that a build wrote before.")],
    target: TargetOption = "cpp",
    optimise: Annotated[
        bool, typer.Option("--optimise/--no-optimise", help="First reparam, canonicalise and precompute.")
    ] = True,
    size: Annotated[
        list[str] | None,
        typer.Option("--size", metavar="NAME=N", help="A number for a symbolic size; may be repeated."),
    ] = None,
    edges: Annotated[
        Path | None,
        typer.Option(
            "--edges", metavar="FILE", help="Of a message-passing program: for the edges of an *.npz file alone."
        ),
    ] = None,
    name: Annotated[str, typer.Option("--name", help="What C names begin with; else the model's name.")] = "",
    input: Inputs = "",
    weights: Weights = None,
    args: Args = "",
    quiet: Quiet = False,
    json: Json = False,
    traceback_: Trace = False,
) -> None:
    """Write a model as a folder of sources with a C interface, which needs neither Python nor torch."""
    from suture.cli.display import working
    from suture.cli.sources import load_graph
    from suture.drivers.building import build as write_folder

    chosen = check_target(target)
    if edges is not None and size:
        raise usage_error("--edges says all sizes", "leave --size out")
    with working(f"building {model}", quiet=quiet or json):
        if edges is not None:
            build_for_edges(
                model, to, edges, target=chosen, name=name, optimise=optimise, inputs=input, args=args, weights=weights
            )
        else:
            graph = load_graph(model, inputs=input, weights=weights, args=args, planned=False)
            write_folder(graph, to, target=chosen, name=name or None, optimise=optimise, sizes=tuple(size or ()))
    files = sorted(path for path in to.iterdir() if path.is_file())
    if json:
        sizes = {path.name: path.stat().st_size for path in files}
        print_json({"ok": True, "folder": str(to), "target": target, "files": sizes})
    elif not quiet:
        print(f"wrote {to}: cmake -S {to} -B {to / 'build'} && cmake --build {to / 'build'} -j")


def build_for_edges(
    model: str,
    to: Path,
    edges: Path,
    *,
    target: Target,
    name: str,
    optimise: bool,
    inputs: str,
    args: str,
    weights: Path | None,
) -> None:
    """Write a message-passing program as sources for the edges of a file."""
    from suture.cli.relational_display import load_program, read_edges
    from suture.drivers.building import build as write_folder

    g = read_edges(edges)
    graph = load_program(model, g, inputs, args, weights)
    read = {value.name for value in graph.inputs}
    given = {each: tensor for each, tensor in g.tensors.items() if each in read and not tensor.is_floating_point()}
    sizes = tuple(f"{size}={number}" for size, number in g.counts.items() if size in graph.symbols())
    write_folder(graph, to, target=target, name=name or None, optimise=optimise, sizes=sizes, edges=given)


def check_target(target: str) -> Target:
    """A target that exists.

    :raises SutureError: USAGE
    """
    if target == "cpp":
        return "cpp"
    if target == "cuda":
        return "cuda"
    raise usage_error(f"there is no target {target!r}", f"{' or '.join(TARGETS)} would be right")
