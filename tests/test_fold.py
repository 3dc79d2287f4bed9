"""fold merges what can be computed ahead of time, keeps names, and says why it leaves a site alone."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import suture.passes
from suture.ir.graph import Graph, Node, Parameter, Value
from suture.ir.semantics import evaluate
from suture.ir.sizes import symbol
from suture.ir.types import TensorType

Build = Callable[[Graph, Value], Value]
WIDE = torch.float64


def graph_of(module: nn.Module, x: torch.Tensor, build: Build) -> Graph:
    """A graph that holds the module's tensors under their names; `build` adds the nodes."""
    graph = Graph("small")
    batch = symbol("batch")
    graph.hints = {"batch": x.shape[0]}
    value = graph.add_input("x", TensorType(x.dtype, (batch, *x.shape[1:])))
    for name, parameter in module.named_parameters():
        graph.add_parameter(name, parameter.detach())
    for name, buffer in module.named_buffers():
        graph.add_parameter(name, buffer, "buffer")
    graph.set_outputs([build(graph, value)], ["y"])
    return graph


def layer(module: nn.Module, path: str) -> Build:
    """The node of one torch layer."""

    def build(graph: Graph, x: Value) -> Value:
        target = module.get_submodule(path)
        prefix = f"{path}." if path else ""
        own = {name: graph.parameters.get(prefix + name) for name in ("weight", "bias", "running_mean", "running_var")}
        if isinstance(target, nn.modules.batchnorm._BatchNorm):
            operands = [x, own["weight"], own["bias"], own["running_mean"], own["running_var"]]
            return graph.add("batch_norm", operands, {"eps": target.eps}, path=path, name=path).output
        if isinstance(target, nn.Linear):
            return graph.add("linear", [x, own["weight"], own["bias"]], path=path, name=path).output
        assert isinstance(target, nn.modules.conv._ConvNd)
        attributes = {
            "stride": target.stride,
            "padding": target.padding,
            "dilation": target.dilation,
            "groups": target.groups,
        }
        if target.transposed:
            attributes["output_padding"] = target.output_padding
        operands = [x, own["weight"], own["bias"]] if target.bias is not None else [x, own["weight"]]
        name = "conv_transpose" if target.transposed else "conv"
        return graph.add(name, operands, attributes, path=path, name=path).output

    return build


def random_norms(module: nn.Module) -> nn.Module:
    """Every norm gets numbers that matter, everything float64."""
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(part.running_mean, -1, 1)
            nn.init.uniform_(part.running_var, 0.5, 2)
            if part.affine:
                nn.init.uniform_(part.weight, 0.5, 2)
                nn.init.uniform_(part.bias, -1, 1)
    return module.to(WIDE).eval()


def sequence(x: torch.Tensor, **layers: nn.Module) -> tuple[nn.Module, Graph]:
    """A torch sequence and its graph."""
    torch.manual_seed(0)
    module = nn.Sequential()
    for name, part in layers.items():
        module.add_module(name, part)
    random_norms(module)

    def build(graph: Graph, value: Value) -> Value:
        for name in layers:
            value = layer(module, name)(graph, value)
        return value

    return module, graph_of(module, x, build)


def require_equal(expected: torch.Tensor, graph: Graph, x: torch.Tensor) -> None:
    torch.testing.assert_close(evaluate(graph, [x])[0], expected, rtol=1e-12, atol=1e-12)


def operators(graph: Graph) -> list[str]:
    return [node.operator.name for node in graph.nodes]


def notes(graph: Graph) -> str:
    return "\n".join(graph.history[-1].notes)


def images(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=WIDE, generator=torch.Generator().manual_seed(1))


WRITERS = {
    "conv1d": (lambda bias: nn.Conv1d(4, 6, 3, padding=1, bias=bias), nn.BatchNorm1d, (2, 4, 9)),
    "conv2d": (lambda bias: nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=bias), nn.BatchNorm2d, (2, 4, 9, 8)),
    "grouped": (lambda bias: nn.Conv2d(4, 6, 3, padding=1, groups=2, bias=bias), nn.BatchNorm2d, (2, 4, 5, 5)),
    "depthwise": (lambda bias: nn.Conv2d(4, 4, 3, groups=4, bias=bias), nn.BatchNorm2d, (2, 4, 5, 5)),
    "conv3d": (lambda bias: nn.Conv3d(2, 3, 2, bias=bias), nn.BatchNorm3d, (2, 2, 3, 4, 5)),
    "transposed": (lambda bias: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, bias=bias), nn.BatchNorm2d, (2, 4, 5, 5)),
    "transposed, grouped": (lambda bias: nn.ConvTranspose2d(4, 6, 3, groups=2, bias=bias), nn.BatchNorm2d, (2, 4, 5, 5)),
    "linear": (lambda bias: nn.Linear(4, 6, bias=bias), nn.BatchNorm1d, (2, 4)),
}  # fmt: skip


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", WRITERS)
def test_a_norm_goes_into_the_layer_before_it(kind: str, bias: bool, affine: bool) -> None:
    make, norm, shape = WRITERS[kind]
    x, first = images(*shape), make(bias)
    width = first.weight.shape[1] * first.groups if kind.startswith("transposed") else first.weight.shape[0]
    module, graph = sequence(x, conv1=first, bn1=norm(width, affine=affine))
    text, weight = str(graph), module.conv1.weight.clone()
    folded = suture.passes.fold(graph)
    require_equal(module(x), folded, x)
    assert len(folded) == 1
    assert set(folded.parameters) == {"conv1.weight", "conv1.bias"}
    assert all(parameter.role == "parameter" and parameter.requires_grad for parameter in folded.parameters.values())
    # the input graph is as it was, tensors included, and what holds the norm's result is still called so
    assert str(graph) == text
    assert torch.equal(module.conv1.weight, weight)
    assert folded.outputs[0].name == "bn1"
    assert folded.nodes[0].path == "conv1"
    assert notes(folded) == "bn1 (batch_norm) is part of conv1.weight"


READERS = {
    "conv2d": (nn.BatchNorm2d, lambda: nn.Conv2d(4, 6, 3, stride=2), (2, 4, 9, 8)),
    "conv2d without bias": (nn.BatchNorm2d, lambda: nn.Conv2d(4, 6, 3, bias=False), (2, 4, 9, 8)),
    "grouped": (nn.BatchNorm2d, lambda: nn.Conv2d(4, 6, 3, groups=2), (2, 4, 9, 8)),
    "depthwise": (nn.BatchNorm2d, lambda: nn.Conv2d(4, 8, 3, groups=4), (2, 4, 9, 8)),
    "linear": (nn.BatchNorm1d, lambda: nn.Linear(4, 6), (2, 4)),
    "linear without bias": (nn.BatchNorm1d, lambda: nn.Linear(4, 6, bias=False), (2, 4)),
    "pointwise transposed": (nn.BatchNorm2d, lambda: nn.ConvTranspose2d(4, 6, 1, groups=2), (2, 4, 5, 5)),
}


@pytest.mark.parametrize("kind", READERS)
def test_a_norm_goes_into_the_layer_after_it(kind: str) -> None:
    norm, make, shape = READERS[kind]
    x = images(*shape)
    module, graph = sequence(x, bn=norm(4), fc=make())
    folded = suture.passes.fold(graph)
    require_equal(module(x), folded, x)
    assert len(folded) == 1
    assert set(folded.parameters) == {"fc.weight", "fc.bias"}
    assert folded.outputs[0].name == "fc"


def test_which_direction_can_be_chosen() -> None:
    x = images(2, 4)
    module, graph = sequence(x, one=nn.Linear(4, 4), bn=nn.BatchNorm1d(4), two=nn.Linear(4, 4))
    for into, changed, kept in (("writers", "one", "two"), ("readers", "two", "one")):
        folded = suture.passes.fold(graph, into=into)
        require_equal(module(x), folded, x)
        assert not torch.equal(folded.parameters[f"{changed}.weight"].data, graph.parameters[f"{changed}.weight"].data)
        assert folded.parameters[f"{kept}.weight"].data is graph.parameters[f"{kept}.weight"].data


@pytest.mark.parametrize("make", [lambda: nn.Conv2d(4, 6, 3, padding=1), lambda: nn.ConvTranspose2d(4, 6, 2, stride=2)])
def test_a_shift_does_not_move_where_it_would_not_reach(make: Callable[[], nn.Module]) -> None:
    x = images(2, 4, 5, 5)
    module, graph = sequence(x, bn=nn.BatchNorm2d(4), conv=make())
    folded = suture.passes.fold(graph)
    assert operators(folded) == operators(graph)
    assert folded.history[-1].outcome == "not applicable"
    assert "nothing stands before it; " in notes(folded)
    assert "the shift would" in notes(folded)
    # the same norm without a shift goes
    graph.parameters["bn.bias"].data.copy_(0)
    graph.parameters["bn.running_mean"].data.zero_()
    folded = suture.passes.fold(graph)
    assert len(folded) == 1
    require_equal(module(x), folded, x)


def test_several_readers_take_a_norm_together_or_not_at_all() -> None:
    torch.manual_seed(0)
    x = images(2, 4)
    module = random_norms(nn.ModuleDict({"bn": nn.BatchNorm1d(4), "a": nn.Linear(4, 3), "b": nn.Linear(4, 3)}))

    def build(graph: Graph, value: Value) -> Value:
        normed = layer(module, "bn")(graph, value)
        return graph.add("add", [layer(module, "a")(graph, normed), layer(module, "b")(graph, normed)]).output

    graph = graph_of(module, x, build)
    normed = module["bn"](x)
    folded = suture.passes.fold(graph)
    assert operators(folded) == ["linear", "linear", "add"]
    require_equal(module["a"](normed) + module["b"](normed), folded, x)
    (norm,) = [node for node in graph.nodes if node.operator.name == "batch_norm"]
    graph.set_outputs([graph.outputs[0], norm.output])
    left = suture.passes.fold(graph)
    assert "batch_norm" in operators(left)
    assert "it is an output of the graph" in notes(left)


def test_a_norm_is_followed_through_regrouped_dimensions() -> None:
    # LeViT's: linear on tokens, tokens flattened into the batch, norm on features, and back; then the same by a permutation
    torch.manual_seed(0)
    x = images(2, 5, 4)
    module = random_norms(
        nn.ModuleDict(
            {
                "one": nn.Linear(4, 6, bias=False),
                "bn1": nn.BatchNorm1d(6),
                "two": nn.Linear(6, 3),
                "bn2": nn.BatchNorm1d(3),
            }
        )
    )
    batch = symbol("batch")

    def build(graph: Graph, value: Value) -> Value:
        value = layer(module, "one")(graph, value)
        flat = graph.add("reshape", [value], shapes=[(batch * 5, 6)]).output
        value = graph.add("reshape", [layer(module, "bn1")(graph, flat)], shapes=[(batch, 5, 6)]).output
        turned = graph.add("permute", [layer(module, "two")(graph, value)], {"dims": (0, 2, 1)}).output
        return layer(module, "bn2")(graph, turned)

    graph = graph_of(module, x, build)
    hidden = module["bn1"](module["one"](x).flatten(0, 1)).reshape(2, 5, 6)
    folded = suture.passes.fold(graph)
    assert "batch_norm" not in operators(folded)
    require_equal(module["bn2"](module["two"](hidden).transpose(1, 2)), folded, x)
    assert folded.outputs[0].name == "bn2"
    assert {"bn1", "bn2"} <= {value.name for value in folded.values()}
    assert not {"one", "two", "reshape"} & {value.name for value in folded.values()}


def refusal(change: Callable[[Graph, dict[str, Node]], None], *, reader: bool = False) -> str:
    """The note on a norm after a convolution, once `change` has been at the graph."""
    x = images(2, 3, 5, 5)
    _, graph = sequence(x, conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4))
    change(graph, {node.path: node for node in graph.nodes})
    expected = evaluate(graph, [x])
    folded = suture.passes.fold(graph)
    for a, b in zip(expected, evaluate(folded, [x]), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-12, atol=1e-12)
    assert "batch_norm" in operators(folded)
    (note,) = [note for note in folded.history[-1].notes if "stays" in note]
    return note


def test_a_layer_with_another_reader_is_left_alone() -> None:
    def add_reader(graph: Graph, nodes: dict[str, Node]) -> None:
        extra = graph.add("relu", [nodes["conv"].output], path="act").output
        graph.set_outputs([*graph.outputs, extra])

    def add_output(graph: Graph, nodes: dict[str, Node]) -> None:
        graph.set_outputs([*graph.outputs, nodes["conv"].output])

    assert refusal(add_reader).startswith("bn (batch_norm) stays: conv has another reader, act")
    assert refusal(add_output).startswith("bn (batch_norm) stays: conv has another reader, an output of the graph")


def test_a_tied_or_computed_weight_is_left_alone() -> None:
    def tie(graph: Graph, nodes: dict[str, Node]) -> None:
        other = graph.add("conv", nodes["conv"].inputs, path="twin").output
        graph.set_outputs([*graph.outputs, other])

    def compute(graph: Graph, nodes: dict[str, Node]) -> None:
        scale = graph.add("mean", [graph.inputs[0]], {"dims": (0, 1, 2, 3)}, before=nodes["conv"]).output
        weight = graph.add("mul", [nodes["conv"].inputs[1], scale], before=nodes["conv"]).output
        nodes["conv"].replace_input(1, weight)

    assert "stays: the weight conv.weight is tied, twin reads it too" in refusal(tie)
    assert "stays: the weight of conv is computed" in refusal(compute)


def test_a_norm_by_the_batch_or_of_something_else_is_left_alone() -> None:
    def by_batch(graph: Graph, nodes: dict[str, Node]) -> None:
        nodes["bn"].replace_input(3, None)
        nodes["bn"].replace_input(4, None)

    def after_relu(graph: Graph, nodes: dict[str, Node]) -> None:
        nodes["bn"].replace_input(0, graph.add("relu", [nodes["conv"].output], before=nodes["bn"]).output)

    assert refusal(by_batch) == "bn (batch_norm) stays: it takes its statistics from the batch"
    assert refusal(after_relu).startswith("bn (batch_norm) stays: what stands before it is relu")


def test_a_norm_shared_by_two_layers_goes_into_both() -> None:
    torch.manual_seed(0)
    x = images(2, 4)
    module = random_norms(nn.ModuleDict({"one": nn.Linear(4, 4), "two": nn.Linear(4, 4), "bn": nn.BatchNorm1d(4)}))

    def build(graph: Graph, value: Value) -> Value:
        for name in ("one", "two"):
            value = layer(module, "bn")(graph, layer(module, name)(graph, value))
        return value

    folded = suture.passes.fold(graph_of(module, x, build))
    assert operators(folded) == ["linear", "linear"]
    assert sorted(folded.parameters) == ["one.bias", "one.weight", "two.bias", "two.weight"]
    require_equal(module["bn"](module["two"](module["bn"](module["one"](x)))), folded, x)


def test_norms_in_a_row_fold_to_a_fixed_point() -> None:
    x = images(2, 3, 5, 5)
    module, graph = sequence(x, a=nn.BatchNorm2d(3), conv=nn.Conv2d(3, 4, 3), b=nn.BatchNorm2d(4), c=nn.BatchNorm2d(4))
    folded = suture.passes.fold(graph)
    assert operators(folded) == ["conv"]
    require_equal(module(x), folded, x)
    again = suture.passes.fold(folded)
    assert again.history[-1].outcome == "not applicable"
    assert again.parameters["conv.weight"].data is folded.parameters["conv.weight"].data


@pytest.mark.parametrize(
    ("operator", "constant_first", "expected"),
    [
        ("mul", False, lambda y, c: y * c),
        ("add", False, lambda y, c: y + c),
        ("sub", False, lambda y, c: y - c),
        ("sub", True, lambda y, c: c - y),
        ("div", False, lambda y, c: y / c),
    ],
)
@pytest.mark.parametrize("scalar", [True, False])
def test_factors_and_offsets_of_channels_go_into_the_layer_before_them(
    operator: str, constant_first: bool, expected: Callable[[object, object], torch.Tensor], scalar: bool
) -> None:
    x = images(2, 3, 5, 5)
    module, graph = sequence(x, conv=nn.Conv2d(3, 4, 3, padding=1))
    scale = graph.add_parameter("scale", torch.rand(4, 1, 1, dtype=WIDE) + 0.5)
    constant, attributes = (None, {"scalar": 0.75}) if scalar else (scale, {})
    y = graph.outputs[0]
    node = graph.add(operator, [constant, y] if constant_first else [y, constant], attributes)
    graph.set_outputs([node.output])
    folded = suture.passes.fold(graph)
    assert operators(folded) == ["conv"]
    require_equal(expected(module(x), 0.75 if scalar else scale.data), folded, x)


def test_a_constant_over_a_division_is_no_affine_map() -> None:
    x = images(2, 4).abs()
    _, graph = sequence(x, fc=nn.Linear(4, 4))
    graph.set_outputs([graph.add("div", [None, graph.outputs[0]], {"scalar": 2.0}).output])
    assert operators(suture.passes.fold(graph)) == ["linear", "div"]


def test_the_normalisation_of_an_image_goes_into_an_unpadded_stem_only() -> None:
    mean, std = torch.rand(3, 1, 1, dtype=WIDE), torch.rand(3, 1, 1, dtype=WIDE) + 0.5
    x = images(2, 3, 8, 8)
    for padding, count in ((0, 1), (1, 2)):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Conv2d(3, 4, 3, padding=padding)).to(WIDE)

        def build(graph: Graph, value: Value, module: nn.Module = module) -> Value:
            centred = graph.add("sub", [value, graph.add_parameter("mean", mean, "buffer")]).output
            return layer(module, "0")(
                graph, graph.add("div", [centred, graph.add_parameter("std", std, "buffer")]).output
            )

        folded = suture.passes.fold(graph_of(module, x, build))
        assert len(folded) == count
        require_equal(module((x - mean) / std), folded, x)
        assert ("pads with zeros" in notes(folded)) == (padding == 1)


def test_a_trained_gain_before_a_layer_stays_what_it_is() -> None:
    x = images(2, 4)
    module = nn.ModuleDict({"fc": nn.Linear(4, 4)}).to(WIDE)
    gain = torch.rand(4, dtype=WIDE)

    def build(graph: Graph, value: Value) -> Value:
        return layer(module, "fc")(graph, graph.add("mul", [value, graph.add_parameter("gain", gain)]).output)

    assert operators(suture.passes.fold(graph_of(module, x, build))) == ["mul", "linear"]


def empty(x: torch.Tensor) -> tuple[Graph, Value]:
    graph = Graph("small")
    value = graph.add_input("x", TensorType(x.dtype, tuple(x.shape)))
    return graph, value


def test_what_depends_on_no_input_becomes_a_tensor() -> None:
    x = images(3, 5)
    graph, value = empty(x)
    steps = graph.add("arange", [], {"dtype": torch.int64}, shapes=[(5,)]).output
    wide = graph.add("cast", [steps], {"dtype": WIDE}).output
    table = graph.add(
        "cos",
        [graph.add("mul", [wide, graph.add_parameter("frequency", torch.tensor(0.3, dtype=WIDE), "buffer")]).output],
        name="table",
    ).output
    graph.set_outputs([graph.add("mul", [value, table]).output])
    folded = suture.passes.fold(graph)
    assert operators(folded) == ["mul"]
    assert folded.parameters["table"].role == "constant"
    assert not folded.parameters["table"].persistent
    assert "frequency" not in folded.parameters
    require_equal(x * torch.cos(torch.arange(5, dtype=WIDE) * 0.3), folded, x)


def test_a_constant_that_would_grow_the_model_stays_computed() -> None:
    x = images(1, 200, 200)
    graph, value = empty(x)
    filled = graph.add("full", [], {"value": 2.0, "dtype": WIDE}, shapes=[(200, 200)]).output
    graph.set_outputs([graph.add("mul", [value, filled]).output])
    folded = suture.passes.fold(graph)
    assert operators(folded) == ["full", "mul"]
    assert "stays computed from constants: as a tensor it would add 320,000 bytes" in notes(folded)
    assert operators(suture.passes.fold(graph, growth=320_000)) == ["mul"]


def test_a_trained_table_is_not_blown_up() -> None:
    # a relative position bias: 9 trained numbers, looked up into 64
    x = images(8, 8)
    graph, value = empty(x)
    table, where = graph.add_parameter("table", torch.randn(9, dtype=WIDE)), torch.arange(64).reshape(8, 8) % 9
    bias = graph.add("index", [table, graph.add_parameter("where", where, "buffer")], {"dims": (0,)}).output
    graph.set_outputs([graph.add("add", [value, bias]).output])
    folded = suture.passes.fold(graph)
    assert operators(folded) == ["index", "add"]
    assert "table" in folded.parameters


def test_a_weight_computed_from_parameters_is_folded_before_the_norm_behind_it() -> None:
    torch.manual_seed(0)
    x = images(2, 3)
    module = random_norms(
        nn.ModuleDict({"fc": nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), "bn": nn.BatchNorm1d(4)})
    )

    def build(graph: Graph, value: Value) -> Value:
        gain, direction = (graph.parameters[f"fc.parametrizations.weight.original{k}"] for k in (0, 1))
        norm = graph.add("vector_norm", [direction], {"dims": (1,), "keepdim": True}, path="fc").output
        unit = graph.add("div", [direction, norm], path="fc").output
        weight = graph.add("mul", [unit, gain], path="fc", name="weight").output
        y = graph.add("linear", [value, weight, graph.parameters["fc.bias"]], path="fc").output
        return layer(module, "bn")(graph, y)

    folded = suture.passes.fold(graph_of(module, x, build))
    assert operators(folded) == ["linear"]
    assert set(folded.parameters) == {"fc.weight", "fc.bias"}
    assert folded.parameters["fc.weight"].role == "parameter"
    require_equal(module["bn"](module["fc"](x)), folded, x)


def test_what_depends_on_a_symbolic_size_is_no_constant() -> None:
    x = images(3, 4)
    graph = Graph("small")
    batch = symbol("batch")
    value = graph.add_input("x", TensorType(WIDE, (batch, 4)))
    ones = graph.add("full", [], {"value": 1.0, "dtype": WIDE}, shapes=[(batch, 4)]).output
    graph.set_outputs([graph.add("add", [value, ones]).output])
    folded = suture.passes.fold(graph)
    assert operators(folded) == ["full", "add"]
    require_equal(x + 1, folded, x)


def test_dead_nodes_and_what_only_they_read_go_but_unread_buffers_stay() -> None:
    x = images(2, 4)
    module, graph = sequence(x, fc=nn.Linear(4, 4))
    graph.add_parameter("fc.num_batches_tracked", torch.tensor(0), "buffer")
    unused = graph.add_parameter("head.weight", torch.randn(2, 4, dtype=WIDE))
    graph.add("linear", [graph.outputs[0], unused, None])
    folded = suture.passes.fold(graph)
    assert operators(folded) == ["linear"]
    assert set(folded.parameters) == {"fc.weight", "fc.bias", "fc.num_batches_tracked"}
    assert "1 nodes that reached no output are gone" in notes(folded)
    require_equal(module(x), folded, x)


def test_folding_in_half_precision_rounds_once() -> None:
    x = images(4, 8, 6, 6)
    module, _ = sequence(x, conv1=nn.Conv2d(8, 8, 3, padding=1), bn1=nn.BatchNorm2d(8))
    expected = module(x)
    module.to(torch.bfloat16)
    half = x.to(torch.bfloat16)
    graph = graph_of(module, half, lambda g, v: layer(module, "bn1")(g, layer(module, "conv1")(g, v)))
    folded = suture.passes.fold(graph)
    assert folded.parameters["conv1.weight"].data.dtype == torch.bfloat16
    error = (evaluate(folded, [half])[0].double() - expected).abs().max() / expected.abs().max()
    assert error < 3e-2


def test_planning_on_shapes_alone_gives_the_same_graph() -> None:
    x = images(2, 3, 9, 9)
    _, graph = sequence(x, a=nn.BatchNorm2d(3), conv=nn.Conv2d(3, 4, 3), b=nn.BatchNorm2d(4))
    folded = suture.passes.fold(graph)
    for parameter in graph.parameters.values():
        parameter.data = parameter.data.to("meta")
    planned = suture.passes.fold(graph)
    planned.history = folded.history  # which differ in the deviation measured
    assert str(planned) == str(folded)
    assert planned.parameters["conv.weight"].data.is_meta


STEPS = ("conv", "pointwise", "norm", "scale", "offset", "relu", "branch")


@settings(max_examples=30)
@given(st.lists(st.sampled_from(STEPS), min_size=1, max_size=8), st.integers(0, 2**20))
def test_any_chain_computes_what_it_did(steps: list[str], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def numbers(*shape: int, low: float = -1.0) -> torch.Tensor:
        return torch.rand(*shape, dtype=WIDE, generator=generator) * (2.0 if low < 0 else 1.0) + low

    graph = Graph("chain")
    x = value = graph.add_input("x", TensorType(WIDE, (symbol("batch"), 4, 6, 6)))
    for position, step in enumerate(steps):
        name = f"{step}{position}"
        if step in ("conv", "pointwise"):
            kernel = 3 if step == "conv" else 1
            weight = graph.add_parameter(f"{name}.weight", numbers(4, 2, kernel, kernel) / math.sqrt(2) / kernel)
            value = graph.add("conv", [value, weight, None], {"padding": kernel // 2, "groups": 2}, path=name).output
        elif step == "norm":
            vectors = [
                graph.add_parameter(f"{name}.{k}", numbers(4, low=0.5 if k in ("gain", "var") else -1.0))
                for k in ("gain", "bias", "mean", "var")
            ]
            value = graph.add("batch_norm", [value, *vectors], path=name).output
        elif step in ("scale", "offset"):
            vector = graph.add_parameter(name, numbers(1, 4, 1, 1, low=0.5), "buffer")
            value = graph.add("mul" if step == "scale" else "add", [value, vector], path=name).output
        elif step == "relu":
            value = graph.add("relu", [value], path=name).output
        else:
            value = graph.add(
                "add", [value, graph.add("neg", [value], path=name).output if position % 2 else x], path=name
            ).output
    graph.set_outputs([value])
    inputs = torch.randn(2, 4, 6, 6, dtype=WIDE, generator=generator)
    expected = evaluate(graph, [inputs])[0]
    folded = suture.passes.fold(graph)
    torch.testing.assert_close(evaluate(folded, [inputs])[0], expected, rtol=1e-9, atol=1e-9)
    # nothing that could have moved is left: a convolution's only reader is no norm and no factor
    for node in folded.nodes:
        if node.operator.name == "conv" and len(node.output.uses) == 1:
            reader = node.output.uses[0].node
            assert reader.operator.name not in ("batch_norm", "mul"), operators(folded)
            assert reader.operator.name != "add" or not isinstance(reader.inputs[1], Parameter), operators(folded)
