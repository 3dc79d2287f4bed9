"""`suture show MODEL --regions`: the outline of a model as a table or JSON, and its picture as a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from suture.cli.display import print_json, print_rows
from suture.cli.guard import usage_error
from suture.ir.files import replacing
from suture.ir.graph import Graph
from suture.ir.regions.outline import LEFT, TITLES, outline

SUFFIX = ".svg"


def show_regions(graphs: Mapping[str, Graph], *, depth: int, svg: Path | None, json: bool) -> None:
    """Print the outlines of some graphs, and draw the only one.

    :param svg: the file to draw into; nothing is drawn if absent
    :raises SutureError: USAGE, if the file is no *.svg or there are several graphs; WRITE
    """
    if svg is not None:
        _draw(graphs, svg)
    outlines = {name: outline(graph, depth) for name, graph in graphs.items()}
    files = [str(svg)] if svg is not None else []
    if json:
        models = {name: found.as_json() for name, found in outlines.items()}
        print_json({"ok": True, "models": models} | ({"files": files} if files else {}))
        return
    for name, found in outlines.items():
        if len(outlines) > 1:
            print(f"# {name}")
        print_rows(TITLES, [row.cells() for row in found.rows], left=LEFT)
        print("\n" + "\n".join(found.notes()))
    for file in files:
        print(f"wrote {file}")


def _draw(graphs: Mapping[str, Graph], path: Path) -> None:
    from suture.backends.region_drawing import draw_regions

    if path.suffix != SUFFIX:
        raise usage_error(f"nothing is drawn into {str(path)!r}", f"the name ends in {SUFFIX}")
    if len(graphs) != 1:
        raise usage_error(f"there are {len(graphs)} models: {', '.join(graphs)}", "save one of them and show that")
    (graph,) = graphs.values()
    text = draw_regions(graph)
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")
