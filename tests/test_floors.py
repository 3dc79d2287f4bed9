"""The floors of the house: who may import whom, wherever in a file the import stands."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import networkx
import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "suture"

KNOWS = {
    "ir": {"ir"},
    "passes": {"ir", "passes"},
    "frontends": {"ir", "frontends", "passes"},  # passes: by the script language alone
    "codegen": {"ir", "codegen"},
    "backends": {"ir", "backends", "codegen"},
    "drivers": {"ir", "passes", "frontends", "backends", "drivers"},
}


@functools.cache
def _modules() -> dict[str, Path]:
    names = {path: ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in PACKAGE.rglob("*.py")}
    return {name.removesuffix(".__init__"): path for path, name in names.items()}


def _imports(path: Path, *, typing: bool) -> set[str]:
    """The modules of the package that a file imports; `typing` counts those that only types need."""
    found: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not typing:
            waiting += node.orelse
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        waiting += ast.iter_child_nodes(node)
    return {name for name in found if name.split(".")[0] == "suture"}


@pytest.mark.parametrize("floor", KNOWS)
def test_nothing_imports_upward(floor: str) -> None:
    for name, path in _modules().items():
        if name.split(".")[1:2] != [floor]:
            continue
        known = KNOWS[floor] if floor != "frontends" or ".script" in name else KNOWS[floor] - {"passes"}
        for imported in _imports(path, typing=True):
            place = imported.split(".")[1:2]
            assert not place or f"suture.{place[0]}" not in _modules() or place[0] in known, (
                f"{name} imports {imported}"
            )


def test_nothing_imports_in_a_circle_when_it_is_loaded() -> None:
    modules = _modules()
    flow = networkx.DiGraph()
    for name, path in modules.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for statement in tree.body:
            if isinstance(statement, ast.ImportFrom) and statement.module in modules:
                for alias in statement.names:
                    inner = f"{statement.module}.{alias.name}"
                    flow.add_edge(name, inner if inner in modules else statement.module)
    circles = [circle for circle in networkx.strongly_connected_components(flow) if len(circle) > 1]
    assert not circles
