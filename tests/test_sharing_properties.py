"""What sharing passes claim, on random stacks of residual blocks: where they say exact, float64 agrees; where they do not, it differs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from suture import passes
from suture.drivers.elastic import Depth, Elastic, Width
from suture.ir.graph import Graph, Value
from suture.ir.regions import stack_at
from suture.ir.semantics import evaluate
from suture.ir.sizes import symbol
from suture.ir.types import TensorType

ACTIVATIONS = ("gelu", "silu", "relu", "tanh", "sigmoid")
Numbers = tuple[int, ...]


@dataclass
class Stack:
    """A graph of residual blocks, its input, and how many blocks and inner units there are."""

    graph: Graph
    x: torch.Tensor
    blocks: int
    units: int


class Writer:
    """Writes a graph of random weights."""

    def __init__(self, seed: int) -> None:
        self.graph = Graph("stack")
        self.generator = torch.Generator().manual_seed(seed)

    def weight(self, name: str, *shape: int, offset: float = 0.0, role: str = "parameter") -> Value:
        data = torch.randn(shape, generator=self.generator, dtype=torch.float64) * 0.4 + offset
        return self.graph.add_parameter(name, data if role == "parameter" else data.abs() + 0.5, role)

    def add(self, operator: str, inputs: list[Value | None], path: str, **attributes: object) -> Value:
        return self.graph.add(operator, inputs, attributes, path=path).output  # type: ignore[arg-type]


@st.composite
def transformers(draw: st.DrawFn) -> Stack:
    """Residual blocks of a norm and a feed-forward layer, on positions `[batch, 3, width]`."""
    width, units, blocks = draw(st.integers(2, 6)), draw(st.integers(2, 7)), draw(st.integers(2, 5))
    norm, activation = draw(st.sampled_from(("layer_norm", "rms_norm", "none"))), draw(st.sampled_from(ACTIVATIONS))
    biased, gated = draw(st.booleans()), draw(st.booleans())
    w = Writer(draw(st.integers(0, 10_000)))
    x = w.graph.add_input("x", TensorType(torch.float64, (symbol("batch"), 3, width)))
    for k in range(blocks):
        path = f"layers.{k}"

        def linear(value: Value, name: str, rows: int, columns: int, path: str = path) -> Value:
            bias = w.weight(f"{path}.{name}.bias", rows) if biased else None
            return w.add("linear", [value, w.weight(f"{path}.{name}.weight", rows, columns), bias], f"{path}.{name}")

        y = x
        if norm != "none":
            gain = w.weight(f"{path}.norm.weight", width, offset=1.0)
            more = [w.weight(f"{path}.norm.bias", width)] if norm == "layer_norm" else []
            y = w.add(norm, [y, gain, *more], f"{path}.norm")
        hidden = w.add(activation, [linear(y, "up", units, width)], path)
        if gated:
            hidden = w.add("mul", [hidden, linear(y, "gate", units, width)], path)
        x = w.add("add", [x, linear(hidden, "down", width, units)], path)
    w.graph.set_outputs([x], ["y"])
    return Stack(w.graph, torch.randn(2, 3, width, generator=w.generator, dtype=torch.float64), blocks, units)


@st.composite
def convolutional(draw: st.DrawFn) -> Stack:
    """Residual blocks of a convolution, a batch norm and another convolution, on images `[batch, channels, 4, 4]`."""
    channels, units, blocks = draw(st.integers(2, 4)), draw(st.integers(2, 5)), draw(st.integers(2, 4))
    kernel, biased = draw(st.sampled_from((1, 3))), draw(st.booleans())
    w = Writer(draw(st.integers(0, 10_000)))
    x = w.graph.add_input("x", TensorType(torch.float64, (symbol("batch"), channels, 4, 4)))
    same = {"stride": (1, 1), "padding": (kernel // 2,) * 2, "dilation": (1, 1), "groups": 1}
    for k in range(blocks):
        path = f"layers.{k}"
        bias = w.weight(f"{path}.up.bias", units) if biased else None
        up = w.weight(f"{path}.up.weight", units, channels, kernel, kernel)
        y = w.add("conv", [x, up, bias], f"{path}.up", **same)
        norm = [w.weight(f"{path}.norm.{leaf}", units, offset=1.0) for leaf in ("weight", "bias")]
        statistics = [w.weight(f"{path}.norm.running_{leaf}", units, role="buffer") for leaf in ("mean", "var")]
        y = w.add("relu", [w.add("batch_norm", [y, *norm, *statistics], f"{path}.norm")], path)
        down = w.weight(f"{path}.down.weight", channels, units, kernel, kernel)
        x = w.add("add", [x, w.add("conv", [y, down, None], f"{path}.down", **same)], path)
    w.graph.set_outputs([x], ["y"])
    return Stack(w.graph, torch.randn(2, channels, 4, 4, generator=w.generator, dtype=torch.float64), blocks, units)


def run(graph: Graph, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return evaluate(graph, [x])[0]


def close(graph: Graph, stack: Stack, reference: Graph | None = None) -> bool:
    expected = run(reference or stack.graph, stack.x)
    return torch.allclose(run(graph, stack.x), expected, rtol=1e-10, atol=1e-10 * float(expected.abs().max()))


@given(st.one_of(transformers(), convolutional()), st.integers(1, 4), st.sampled_from(("stepwise", "average", "lower")))
@settings(max_examples=12)
def test_recursion_of_full_rank_is_exact_and_of_none_says_it_is_not(stack: Stack, blocks: int, initialise: str) -> None:
    blocks = min(blocks, stack.blocks - 1)
    full = passes.recurse(stack.graph, blocks=blocks, initialise=initialise, rank="full")
    assert full.history[-1].contract == "exact" and close(full, stack)
    bare = passes.recurse(stack.graph, blocks=blocks, initialise=initialise)
    assert bare.history[-1].contract == "approximate" and not close(bare, stack)
    low = passes.recurse(stack.graph, blocks=blocks, initialise=initialise, rank=1)
    merged = passes.untie(low)
    assert close(merged, stack, low)
    assert {n: p.type for n, p in merged.parameters.items()} == {n: p.type for n, p in stack.graph.parameters.items()}


@given(st.one_of(transformers(), convolutional()), st.data())
@settings(max_examples=8)
def test_stages_expand_to_what_they_were_trained_as(stack: Stack, data: st.DataObject) -> None:
    first = data.draw(st.integers(1, stack.blocks - 1))
    stages = (first, stack.blocks - first)
    shared = passes.share_stages(stack.graph, stages=stages)
    same = passes.expand_stages(shared, repeats=stages)
    if same.history[-1].outcome == "done":
        assert same.history[-1].contract == "exact" and close(same, stack, shared)
    deeper = passes.expand_stages(shared, repeats=(first + 1, stack.blocks - first))
    assert len(stack_at(deeper)) == stack.blocks + 1
    assert deeper.history[-1].contract == "approximate"


@given(transformers(), st.integers(1, 4), st.data())
@settings(max_examples=12)
def test_upcycling_is_exact_where_gates_sum_to_one(stack: Stack, experts: int, data: st.DataObject) -> None:
    top = data.draw(st.integers(1, experts))
    sparse = passes.upcycle(stack.graph, experts=experts, top=top, spread=2.0)
    assert sparse.history[-1].contract == "exact" and close(sparse, stack)
    loose = passes.upcycle(stack.graph, experts=experts, top=top, spread=2.0, renormalise=False)
    assert (loose.history[-1].contract == "exact") == (top == experts) == close(loose, stack)
    assert close(passes.merge_experts(sparse, by="mean"), stack)


@given(transformers(), st.integers(1, 4), st.sampled_from(("renormalise", "mask")), st.booleans())
@settings(max_examples=12)
def test_experts_cut_out_of_a_layer_are_the_layer(stack: Stack, experts: int, weigh: str, calibrated: bool) -> None:
    experts = min(experts, max(stack.units // 2, 1), 2 if calibrated else 4)  # two samples tell two domains apart
    data = {"x": stack.x} if calibrated else None
    split = passes.split_experts(stack.graph, experts=experts, weigh=weigh, data=data)
    assert split.history[-1].contract == "exact" and close(split, stack)
    merged = passes.merge_experts(split)
    assert close(merged, stack)
    assert {n: p.type for n, p in merged.parameters.items()} == {n: p.type for n, p in stack.graph.parameters.items()}
    if experts > 1:
        fewer = passes.split_experts(stack.graph, experts=experts, weigh=weigh, top=1, data=data)
        assert fewer.history[-1].contract == "approximate"


@given(st.one_of(transformers(), convolutional()), st.data())
@settings(max_examples=8)
def test_a_sub_network_at_run_time_is_the_extracted_one(stack: Stack, data: st.DataObject) -> None:
    units, blocks = data.draw(st.integers(2, stack.units)), data.draw(st.integers(1, stack.blocks))
    elastic = Elastic(stack.graph, [Width("layers.*.up", (units,)), Depth("layers", (blocks,), keep="even")])
    assert str(elastic.extract(elastic.full)) == str(stack.graph)
    small = elastic.extract(elastic.smallest)
    with torch.no_grad():
        received = elastic.module().set(elastic.smallest)(stack.x)
    torch.testing.assert_close(received, run(small, stack.x), rtol=0, atol=1e-11)
    stats = small.stats()
    assert (elastic.cost(elastic.smallest).macs, elastic.cost(elastic.smallest).parameters) == (
        stats.macs,
        stats.parameters,
    )
