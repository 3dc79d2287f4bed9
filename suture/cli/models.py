"""Commands on models: `show`, `compare`, `export`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from suture.cli.application import EPILOG, Args, Inputs, Json, ModelName, Quiet, Trace, Weights, app
from suture.cli.display import print_json
from suture.cli.guard import CHECK_FAILED, guarded, usage_error
from suture.cli.sources import MODEL_HELP, ONNX_SUFFIX
from suture.frontends.archive import SUFFIX as GRAPH_SUFFIX
from suture.frontends.script.parser import SUFFIX as SCRIPT_SUFFIX
from suture.ir.errors import Code


@app.command(epilog=EPILOG)
@guarded
def show(
    model: ModelName,
    axes: Annotated[
        bool, typer.Option("--axes", help="What must change together, and what is pinned and why.")
    ] = False,
    regions: Annotated[
        bool, typer.Option("--regions", help="Modules, stacks, and where the model can be cut.")
    ] = False,
    depth: Annotated[int, typer.Option("--depth", min=1, help="With --regions: how many levels of modules.")] = 2,
    svg: Annotated[
        Path | None, typer.Option("--svg", metavar="FILE", help="With --regions: draw them into an *.svg file.")
    ] = None,
    stats: Annotated[
        bool, typer.Option("--stats", help="Nodes, parameters, bytes, multiply-accumulates (the default).")
    ] = False,
    text: Annotated[bool, typer.Option("--text", help="The graph's text.")] = False,
    executed: Annotated[
        bool,
        typer.Option("--executed", help="Of an ONNX file: what ONNX Runtime runs in integers, and what in floats."),
    ] = False,
    kernels: Annotated[
        bool, typer.Option("--kernels", help="What it is compiled to: kernels and why, memory, what is left to torch.")
    ] = False,
    relational: Annotated[
        bool,
        typer.Option(
            "--relational", help="Of a message-passing program: where values live, what was reordered, what it costs."
        ),
    ] = False,
    edges: Annotated[
        Path | None,
        typer.Option("--edges", metavar="FILE", help="With --relational: run it on the edges of an *.npz file."),
    ] = None,
    target: Annotated[str, typer.Option("--target", help="With --kernels: cpp or cuda.")] = "cpp",
    size: Annotated[
        list[str] | None,
        typer.Option(
            "--size", metavar="NAME=N", help="With --kernels or --relational: a symbolic size; may be repeated."
        ),
    ] = None,
    arch: Annotated[
        list[int] | None,
        typer.Option(
            "--arch", metavar="N", help="With --kernels --target cuda: compile for sm_N to see what kernels take."
        ),
    ] = None,
    input: Inputs = "",
    weights: Weights = None,
    args: Args = "",
    json: Json = False,
    traceback_: Trace = False,
) -> None:
    """Show a model. A script's models are shown as it leaves them, planned without weights."""
    from suture.cli import display
    from suture.cli.regions_display import show_regions
    from suture.frontends.script.report import stats_json

    if axes + regions + stats + text + executed + kernels + relational > 1:
        names = "--axes, --regions, --stats, --text, --kernels, --relational and --executed"
        raise usage_error(f"{names} exclude each other", "ask for one of them")
    if edges is not None and not relational:
        raise usage_error("--edges are what a message-passing program runs on", "add --relational")
    if relational:
        from suture.cli.relational_display import show_relational

        show_relational(model, inputs=input, args=args, weights=weights, edges=edges, sizes=size or (), json=json)
        return
    if not kernels and (target != "cpp" or size or arch):
        raise usage_error("--target, --size and --arch say how kernels are shown", "add --kernels")
    if svg is not None and not regions:
        raise usage_error("--svg draws regions", "add --regions")
    what = "axes" if axes else "regions" if regions else "text" if text else "stats"
    path = Path(model)
    if path.suffix == ONNX_SUFFIX:
        if axes or regions or text or kernels:
            raise usage_error(f"an ONNX file has no {'kernels' if kernels else what} here", "show it without options")
        if executed:
            _show_executed(path, json=json)
        else:
            _show_onnx(path, json=json)
        return
    if executed:
        raise usage_error("--executed is for ONNX files", f"export the model to an *{ONNX_SUFFIX} file first")
    with display.working(f"reading {model}", quiet=json):
        if path.suffix == SCRIPT_SUFFIX:
            from suture import surgery

            graphs = dict(surgery.check(path).graphs)
        else:
            from suture.cli.sources import load_graph

            graphs = {model: load_graph(model, inputs=input, weights=weights, args=args, planned=not kernels)}
    if kernels:
        from suture.cli.builds import check_target
        from suture.cli.kernels_display import show_kernels

        show_kernels(graphs, target=check_target(target), sizes=size or (), architectures=arch or (), json=json)
        return
    if regions:
        show_regions(graphs, depth=depth, svg=svg, json=json)
        return
    if json:
        rows = {
            name: {"stats": stats_json(graph.stats()), "operators": dict(graph.stats().operators)}
            | ({"axes": str(graph.axes())} if axes else {"text": str(graph)} if text else {})
            for name, graph in graphs.items()
        }
        print_json({"ok": True, "models": rows})
        return
    from suture.frontends.script.report import view

    for name, graph in graphs.items():
        if len(graphs) > 1:
            print(f"# {name}")
        if what == "stats":
            display.print_rows(["", ""], [[key, value] for key, value in display.stats_rows(graph.stats()).items()])
            display.print_rows(["operator", "nodes"], [[key, f"{n:,}"] for key, n in graph.stats().operators.items()])
        else:
            print(view(graph, what))


def _show_onnx(path: Path, *, json: bool) -> None:
    from suture.backends.onnx import summarise_onnx

    summary = summarise_onnx(path)
    if json:
        fields = {key: value for key, value in vars(summary).items() if key != "path"}
        print_json({"ok": True, "file": str(path), "size": path.stat().st_size, **fields})
    else:
        print(summary)


def _show_executed(path: Path, *, json: bool) -> None:
    from suture.backends.ort_report import quantisation_report

    report = quantisation_report(path)
    if json:
        print_json({"ok": True, "file": str(path), **report.as_data()})
    else:
        print(report)


@app.command(epilog=EPILOG)
@guarded
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help=MODEL_HELP)],
    b: Annotated[str, typer.Argument(metavar="B", help=MODEL_HELP)],
    on: Annotated[
        Path | None, typer.Option("--on", help="Probes: an .npz or .safetensors file; else they are drawn.")
    ] = None,
    within: Annotated[float | None, typer.Option("--within", help="Exit with 1 if an output differs by more.")] = None,
    relative: Annotated[
        bool, typer.Option("--relative", help="Hold the relative difference against --within.")
    ] = False,
    input: Inputs = "",
    weights: Weights = None,
    args: Args = "",
    json: Json = False,
    traceback_: Trace = False,
) -> None:
    """Compare two models, output by output: largest difference, relative difference, cosine."""
    from suture.backends.compare import compare as compare_models
    from suture.cli.display import print_rows, working
    from suture.cli.sources import input_graph, load_graph
    from suture.frontends.arrays import load_arrays
    from suture.ir.graph import Graph
    from suture.passes.probes import bind_probes, draw_probes

    with working(f"comparing {a} and {b}", quiet=json):
        sides: list[Graph | Path] = []
        likes: list[Graph] = []
        for name in (a, b):
            if Path(name).suffix == ONNX_SUFFIX:
                likes.append(input_graph(Path(name)))
                sides.append(Path(name))
            else:
                likes.append(load_graph(name, inputs=input, weights=weights, args=args, planned=False))
                sides.append(likes[-1])
        like = next((side for side in sides if isinstance(side, Graph)), likes[0])
        probes = draw_probes(like) if on is None else bind_probes(like, load_arrays(on))
        rows = compare_models(sides[0], sides[1], probes).outputs
    if json:
        fields = ("name", "max_abs", "relative", "cosine")
        print_json({"ok": True, "outputs": [{field: getattr(row, field) for field in fields} for row in rows]})
    else:
        cells = [[row.name, f"{row.max_abs:.3g}", f"{row.relative:.3g}", f"{row.cosine:.6f}"] for row in rows]
        print_rows(["output", "max |difference|", "relative", "cosine"], cells)
    worst = [row.relative if relative else row.max_abs for row in rows]
    if within is not None and not all(value <= within for value in worst):
        if not json:
            print(f"error: [{Code.SCRIPT_CHECK.value}] an output differs by more than {within:g}", file=sys.stderr)
        raise typer.Exit(CHECK_FAILED)


@app.command(epilog=EPILOG)
@guarded
def export(
    model: ModelName,
    to: Annotated[Path, typer.Argument(metavar="FILE", help=f"*{ONNX_SUFFIX} or *{GRAPH_SUFFIX}")],
    opset: Annotated[int, typer.Option("--opset", help="The ONNX opset.")] = 21,
    profile: Annotated[
        str, typer.Option("--profile", help="What the file is for: portable, onnxruntime or mobile.")
    ] = "portable",
    size: Annotated[
        list[str] | None,
        typer.Option("--size", metavar="NAME=N", help="A number for a symbolic size; may be repeated."),
    ] = None,
    choice: Annotated[
        list[str] | None,
        typer.Option("--choice", metavar="NAME=WAY", help="One of several emissions, as linear=gemm; may be repeated."),
    ] = None,
    optimise: Annotated[
        bool, typer.Option("--optimise", help="First reparam, canonicalise, precompute and, for onnxruntime, fuse.")
    ] = False,
    input: Inputs = "",
    weights: Weights = None,
    args: Args = "",
    quiet: Quiet = False,
    json: Json = False,
    traceback_: Trace = False,
) -> None:
    """Trace a model and write it as an ONNX file or a saved graph."""
    from suture.cli.display import working
    from suture.cli.sources import load_graph
    from suture.frontends.archive import save_graph

    if to.suffix not in (ONNX_SUFFIX, GRAPH_SUFFIX):
        raise usage_error(f"nothing exports to {str(to)!r}", f"the name ends in {ONNX_SUFFIX} or {GRAPH_SUFFIX}")
    with working(f"exporting {model}", quiet=quiet or json):
        graph = load_graph(model, inputs=input, weights=weights, args=args, planned=False)
        if to.suffix == GRAPH_SUFFIX:
            save_graph(graph, to)
        else:
            from suture.backends.onnx.profile import find_profile
            from suture.drivers.exporting import export_onnx

            export_onnx(
                graph,
                to,
                opset=opset,
                profile=find_profile(profile).name,  # type: ignore[arg-type]  # known by now
                sizes=tuple(size or ()),
                choices=tuple(choice or ()),
                optimise=optimise,
            )
    if json:
        print_json({"ok": True, "files": [str(to)], "bytes": to.stat().st_size})
    elif not quiet:
        print(f"wrote {to}")
