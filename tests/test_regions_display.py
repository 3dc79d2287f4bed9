"""What people see of a model's regions: the outline's text and the drawing, in which nothing overlaps."""

from __future__ import annotations

import itertools
import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from typer.testing import CliRunner

import suture
from suture.backends.region_drawing import draw_regions
from suture.backends.svg import ADVANCE
from suture.cli import app
from suture.ir.graph import Graph
from suture.ir.regions.diagram import diagram
from suture.ir.regions.outline import outline

SVG = "{http://www.w3.org/2000/svg}"
PAGE = Path(__file__).parent.parent / "docs" / "regions.md"
NETS = """
from torch import nn
def stack(depth=3):
    blocks = [nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(depth)]
    return nn.Sequential(nn.Linear(4, 4), nn.Sequential(*blocks), nn.Linear(4, 3))
"""
Place = tuple[float, float, float, float]


def traced(name: str) -> Graph:
    entry = zoo.ENTRIES[name]
    args, kwargs = entry.args()
    return suture.trace(entry.module(), args, kwargs, dynamic=entry.dynamic)


@pytest.fixture(scope="module")
def graphs() -> dict[str, Graph]:
    return {name: traced(name) for name in ("bert", "t5", "unet")}


def test_the_outline_collapses_stacks_and_says_what_flows(graphs: dict[str, Graph]) -> None:
    lines = str(outline(graphs["bert"])).splitlines()
    assert lines[0].split() == ["region", "nodes", "parameters", "MACs", "cut", "stream", "ambient"]
    (row,) = [line for line in lines if "encoder.layer x 2" in line]
    # 2 x (4 (32 32 + 32) + 2 (32 64) + 64 + 32 + 2 x 64) trained elements
    assert row.split()[3:6] == ["44", f"{2 * (4 * 1056 + 2 * 2048 + 96 + 128):,}", "215,040"]
    assert "*" in row
    assert row.endswith("%bitwise_and")
    assert "f32[batch, sequence, 32], kept" in row
    assert "stack encoder.layer: 2 blocks, %embeddings_dropout -> %encoder_layer_1_output_LayerNorm" in lines[-2]
    assert lines[-1].startswith("14 cut values (*): %input_ids, ")


def test_the_outline_counts_as_the_modules_do() -> None:
    entry = zoo.ENTRIES["resnet18"]
    module = entry.module()
    args, kwargs = entry.args()
    found = outline(suture.trace(module, args, kwargs, dynamic=entry.dynamic), depth=3)
    modules = dict(module.named_modules())
    counted = 0
    for row in found.rows:
        if row.path in modules:
            counted += 1
            assert row.parameters == sum(p.numel() for p in modules[row.path].parameters()), row.path
    assert counted > 20


def test_a_row_stands_for_each_level_of_modules(graphs: dict[str, Graph]) -> None:
    depths = [max(row.depth for row in outline(graphs["t5"], depth).rows) for depth in (1, 2, 3)]
    assert depths == [1, 2, 3]
    labels = [row.label for row in outline(graphs["t5"], 2).rows]
    assert "block x 2" in labels  # below encoder, and below decoder
    assert labels.count("block x 2") == 2


def test_an_outline_of_a_graph_without_inputs() -> None:
    graph = Graph("empty")
    assert "0 cut values" in str(outline(graph))
    assert ElementTree.fromstring(draw_regions(graph)).tag == f"{SVG}svg"


def test_a_diagram_holds_every_node_once(graphs: dict[str, Graph]) -> None:
    for graph in graphs.values():
        found = diagram(graph)
        nodes = [node for box in (*found.main, *found.side) for node in box.nodes]
        assert sorted(map(id, nodes)) == sorted(map(id, graph.nodes))


def test_the_diagram_of_a_unet_shows_what_crosses(graphs: dict[str, Graph]) -> None:
    found = diagram(graphs["unet"])
    place = {box: k for k, box in enumerate(found.main)}
    crossing = {
        (edge.source.label, edge.target.label)
        for edge in found.edges
        if edge.source in place and place[edge.target] > place[edge.source] + 1
    }
    assert crossing == {("down.0", "concat"), ("down.1", "concat"), ("down.2", "concat")}


def places(drawing: str) -> tuple[Place, list[Place], list[tuple[Place, str]]]:
    """The page, the boxes and the texts, as x, y, width, height."""
    root = ElementTree.fromstring(drawing)
    page = (0.0, 0.0, float(root.get("width")), float(root.get("height")))
    boxes, texts = [], []
    for element in root.iter():
        if element.tag == f"{SVG}rect" and element.get("width") != "100%":
            boxes.append(tuple(float(element.get(key)) for key in ("x", "y", "width", "height")))
        elif element.tag == f"{SVG}text":
            size, text = float(element.get("font-size")), element.text or ""
            width = ADVANCE * size * len(text)
            start = float(element.get("x")) - {"start": 0, "end": width}[element.get("text-anchor", "start")]
            texts.append(((start, float(element.get("y")) - 0.8 * size, width, size), text))
    return page, boxes, texts


def overlap(a: Place, b: Place) -> bool:
    return a[0] < b[0] + b[2] and b[0] < a[0] + a[2] and a[1] < b[1] + b[3] and b[1] < a[1] + a[3]


def inside(a: Place, b: Place) -> bool:
    rounding = 0.1
    return (
        b[0] - rounding <= a[0] and b[1] - rounding <= a[1]
        and a[0] + a[2] <= b[0] + b[2] + rounding and a[1] + a[3] <= b[1] + b[3] + rounding
    )  # fmt: skip


def require_readable(drawing: str) -> None:
    """No text on another, none across a box's border, no box on another but the shadows of a stack, nothing off the page."""
    page, boxes, texts = places(drawing)
    for (a, one), (b, other) in itertools.combinations(texts, 2):
        assert not overlap(a, b), (one, other)
    for place, text in texts:
        assert inside(place, page), text
        assert all(inside(place, box) or not overlap(place, box) for box in boxes), text
    for a, b in itertools.combinations(boxes, 2):
        is_shadow = (a[2], a[3]) == (b[2], b[3]) and abs(a[0] - b[0]) < 8 and abs(a[1] - b[1]) < 8
        assert is_shadow or not overlap(a, b)


def test_nothing_in_a_drawing_overlaps(graphs: dict[str, Graph]) -> None:
    for graph in graphs.values():
        require_readable(draw_regions(graph))


class Skipping(nn.Module):
    """Layers of which each adds what some earlier ones gave."""

    def __init__(self, reads: list[list[int]]) -> None:
        super().__init__()
        self.reads = reads
        self.first_layer = nn.Linear(4, 4)
        for k, _ in enumerate(reads):
            setattr(self, f"layer_{'long' * (k % 3)}_{'abcdefgh'[k]}", nn.Linear(4, 4))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        values = [self.first_layer(x)]
        layers = [module for name, module in self.named_children() if name != "first_layer"]
        for layer, earlier in zip(layers, self.reads, strict=True):
            total = layer(values[-1])
            for index in earlier:
                total = total + values[index % len(values)] * mask.sigmoid()
            values.append(total)
        return values[-1]


@settings(max_examples=15)
@given(st.lists(st.lists(st.integers(0, 7), max_size=3), min_size=1, max_size=8))
def test_nothing_overlaps_whatever_crosses(reads: list[list[int]]) -> None:
    graph = suture.trace(Skipping(reads), (torch.ones(2, 4), torch.ones(2, 4)), dynamic=[{0: "batch"}, {0: "batch"}])
    require_readable(draw_regions(graph))


def test_a_drawing_says_each_label_once(graphs: dict[str, Graph]) -> None:
    texts = [text for _, text in places(draw_regions(graphs["bert"]))[2]]
    for label in ("encoder.layer", "x 2", "pooler", "bool[batch, 1, sequence, sequence]", "ambient", "cut value"):
        assert texts.count(label) == 1, label


# ------------------------------------------------------------------------------------------------- the command line
@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def show(*arguments: str, status: int = 0) -> str:
    result = CliRunner().invoke(
        app, ["show", "nets:stack", "--input", "f32[batch, 4]", *arguments], catch_exceptions=False
    )
    assert result.exit_code == status, result.output
    return result.stdout if status == 0 else result.stderr


def test_the_command_prints_and_draws(folder: Path) -> None:
    output = show("--regions", "--depth", "1", "--svg", "n.svg")
    assert re.search(r"1 x 3 +6 +60 +48 +\* +f32\[batch, 4\], kept", output)
    assert output.endswith("wrote n.svg\n")
    require_readable((folder / "n.svg").read_text())


def test_the_command_gives_json(folder: Path) -> None:
    found = json.loads(show("--regions", "--json"))["models"]["nets:stack"]
    assert found["stacks"][0]["blocks"] == ["1.0", "1.1", "1.2"]
    assert [cut["type"] for cut in found["cuts"]] == ["f32[batch, 4]"] * 8 + ["f32[batch, 3]"]
    assert next(row for row in found["regions"] if row["blocks"] == 3)["params"] == 60


def test_the_command_refuses_what_makes_no_sense(folder: Path) -> None:
    assert "exclude each other" in show("--regions", "--text", status=2)
    assert "add --regions" in show("--svg", "n.svg", status=2)
    assert "ends in .svg" in show("--regions", "--svg", "n.png", status=2)
    assert "cannot write" in show("--regions", "--svg", "none/n.svg", status=2)
    assert not (folder / "n.png").exists()


def test_a_script_shows_regions(folder: Path) -> None:
    (folder / "s.suture").write_text('suture 1\nmodel net = torch "nets:stack" input f32[batch, 4]\nshow net regions\n')
    result = CliRunner().invoke(app, ["check", "s.suture"], catch_exceptions=False)
    assert "1 x 3" in result.stdout


# ------------------------------------------------------------------------------------------------------ the page
def test_the_page_and_its_picture_are_true() -> None:
    page = PAGE.read_text(encoding="utf-8")
    code = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    zoo.declare_torchvision_operators()
    from suture.ir.splice import arrange

    known = {"torch": torch, "suture": suture, "outline": outline, "arrange": arrange, "print": lambda text: None}
    for block in code:
        exec(block, known)
    shown = re.search(r"\n((?:    [^\n]*\n|\n)+)\n`suture show", page)
    assert shown is not None
    assert [line[4:] for line in shown[1].strip("\n").splitlines()] == str(
        outline(known["graph"], depth=3)
    ).splitlines()
    assert (PAGE.parent / "regions.svg").read_text(encoding="utf-8") == draw_regions(known["graph"])
