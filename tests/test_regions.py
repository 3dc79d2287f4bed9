"""Regions: cut values, segments, stacks and their numbering, isomorphism, on drawn graphs and on real models."""

from __future__ import annotations

import copy

import networkx
import pytest
import torch
import zoo
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import suture
from suture.ir.graph import Graph, Value
from suture.ir.regions import (
    at_path,
    between,
    correspondence,
    cuts,
    difference,
    module_tree,
    segments,
    stack_at,
    stacks,
)
from suture.ir.text import parse_graph


def _traced(name: str) -> Graph:
    entry = zoo.ENTRIES[name]
    args, kwargs = entry.args(2, 8)
    return suture.trace(entry.module(), args, kwargs, dynamic=entry.dynamic)


@st.composite
def _wired(draw: st.DrawFn) -> Graph:
    """A graph of additions over one input and one ambient input, wired at random."""
    graph = Graph("wired")
    type_ = parse_graph("graph t(%x: f32[3]) {\n return %x\n}").inputs[0].type
    values: list[Value] = [graph.add_input("x", type_), graph.add_input("mask", type_)]
    for k in range(draw(st.integers(1, 12))):
        picked = [draw(st.sampled_from(values[-4:])) for _ in range(draw(st.integers(1, 2)))]
        node = graph.add("add" if len(picked) == 2 else "relu", picked, name=f"v{k}")
        values.append(node.output)
    count = draw(st.integers(1, 2))
    graph.set_outputs(list(dict.fromkeys(values[-count:])))
    graph.remove_dead()
    return graph


def _dominators(graph: Graph, source: str) -> set[str]:
    """What every path from the source to the outputs crosses, by networkx's immediate post-dominators."""
    flow = networkx.DiGraph()
    flow.add_node(source)
    for node in graph.nodes:
        for value in node.inputs:
            if value is not None:
                flow.add_edge(value.name, node.output.name)
    for value in graph.outputs:
        flow.add_edge(value.name, "end")
    kept = networkx.descendants(flow, source) | {source}
    if "end" not in kept:
        return set()
    backwards = flow.subgraph(kept & (networkx.ancestors(flow, "end") | {"end"})).reverse()
    parents = networkx.immediate_dominators(backwards, "end")
    found, value = set(), source
    while value != "end":
        found.add(value)
        value = parents[value]
    return found


@given(_wired())
def test_cut_values_are_the_post_dominators_of_the_input(graph: Graph) -> None:
    for source in graph.inputs:
        assert {value.name for value in cuts(graph, source)} == _dominators(graph, source.name)


@given(_wired())
def test_segments_are_what_lies_between_consecutive_cuts(graph: Graph) -> None:
    chain = cuts(graph, "x")
    pieces = segments(graph, "x")
    assert len(pieces) == max(len(chain) - 1, 0)
    seen: set[object] = set()
    for piece, entry, exit in zip(pieces, chain, chain[1:], strict=False):
        assert piece.stream is entry
        assert piece.outputs == (exit,)
        assert seen.isdisjoint(piece.nodes)
        seen |= set(piece.nodes)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bert", {"encoder.layer": (2, 1)}),
        ("gpt2", {"transformer.h": (2, 1)}),
        ("llama", {"model.layers": (2, 3)}),
        ("t5", {"encoder.block": (2, 1), "decoder.block": (2, 3)}),
        ("resnet18", {"layer1": (2, 0)}),
        ("torchvision_vit", {"encoder.layers": (12, 0)}),
        ("regnety_008", {"s2": (2, 0), "s3": (7, 0)}),
        ("swin_tiny_patch4_window7_224", {"layers.2.blocks": (3, 0), "layers.3.blocks": (2, 0)}),
        ("unet", {}),
    ],
)
def test_stacks_of_real_models(name: str, expected: dict[str, tuple[int, int]]) -> None:
    found = {stack.name: (len(stack), len(stack.blocks[0].ambient)) for stack in stacks(_traced(name))}
    assert found == expected


class _Convolutions(nn.Module):
    """Two equal layers a block, and an activation before the first: the same layers repeat within blocks, and across their borders."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        layers = (nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.blocks = nn.Sequential(*[nn.Sequential(*copy.deepcopy(layers), *copy.deepcopy(layers)) for _ in range(3)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(self.stem(x).relu()).mean((2, 3))


def test_blocks_begin_and_end_where_modules_do() -> None:
    (stack,) = stacks(suture.trace(_Convolutions(), torch.zeros(2, 3, 8, 8)))
    assert (stack.name, [block.name for block in stack.blocks]) == ("blocks", ["blocks.0", "blocks.1", "blocks.2"])
    assert stack.numbering is not None
    assert stack.numbering.move("blocks.1.2.weight", 1, 5) == "blocks.5.2.weight"


def test_a_block_of_a_stack_has_the_parameters_of_its_module() -> None:
    graph = _traced("bert")
    block = stack_at(graph, "encoder.layer").blocks[1]
    module = zoo.ENTRIES["bert"].module().encoder.layer[1]
    assert {p.name for p in block.parameters} == {f"encoder.layer.1.{name}" for name, _ in module.named_parameters()}
    assert block.stream is stack_at(graph, "encoder.layer").blocks[0].output


def test_counters_of_batch_norms_belong_to_their_block() -> None:
    block = stack_at(_traced("resnet18"), "layer1").blocks[1]
    assert "layer1.1.bn2.num_batches_tracked" in {p.name for p in block.parameters}


def test_ambient_values_are_not_crossings() -> None:
    graph = _traced("llama")
    names = {value.name for value in cuts(graph)}
    assert {"model_embed_tokens", "model_layers_0_add_1", "model_layers_1_add_1"} <= names
    assert "model_rotary_emb_cos" not in names


def test_modules_form_a_tree() -> None:
    tree = module_tree(_traced("bert"))
    assert list(tree.children) >= ["embeddings"]
    attention = tree.children["encoder"].children["layer"].children["0"].children["attention"]
    assert attention.path == "encoder.layer.0.attention"
    assert len(attention.region) == len(at_path(tree.region.graph, "encoder.layer.0.attention"))


def test_isomorphic_blocks_correspond() -> None:
    graph = _traced("llama")
    first, second = stack_at(graph).blocks
    found = correspondence(first, second)
    assert len(found.nodes) == len(first)
    assert {a.name.replace("layers.0", "layers.1"): b.name for a, b in found.parameters.items()} == {
        p.name: p.name for p in second.parameters
    }
    assert found.values[first.output] is second.output


class _Uneven(nn.Module):
    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Sequential(nn.Linear(8, w), nn.ReLU(), nn.Linear(w, 8)) for w in widths])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x


def test_the_first_difference_is_named() -> None:
    graph = suture.trace(_Uneven(16, 12), torch.zeros(2, 8))
    text = difference(at_path(graph, "layers.0"), at_path(graph, "layers.1"))
    assert text is not None
    assert "16" in text
    assert "12" in text
    with pytest.raises(suture.SutureError, match=r"S109.*layers.1 is not like layers.0.*16"):
        stack_at(graph, "layers")


def test_a_graph_without_a_stack_says_so() -> None:
    with pytest.raises(suture.SutureError, match=r"S109.*no region of the graph repeats"):
        stack_at(suture.trace(nn.Linear(3, 4), torch.zeros(2, 3)))
    with pytest.raises(suture.SutureError, match=r"S451.*no stack 'encoder.layers'.*encoder.layer"):
        stack_at(_traced("bert"), "encoder.layers")


def test_no_cut_between_two_points_names_what_else_crosses() -> None:
    graph = _traced("unet")
    with pytest.raises(suture.SutureError, match=r"S110.*is no cut behind.*%down_0_5"):
        between(graph, "x", "bottom_5")
    with pytest.raises(suture.SutureError, match=r"S110.*nothing leads from"):
        between(graph, graph.outputs[0], "x")
    with pytest.raises(suture.SutureError, match=r"S451.*no value 'bottom_55'.*bottom_5"):
        between(graph, "x", "bottom_55")


def test_a_region_between_two_values_may_be_a_branch() -> None:
    graph = _traced("llama")
    region = between(graph, "model_layers_0_add", "model_layers_0_mlp_down_proj")
    assert {node.path for node in region.nodes} >= {"model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj"}
    assert region.parameter_count() == 3 * 32 * 64 + 32
