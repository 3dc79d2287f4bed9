"""The branch: one of two bodies runs, in the evaluator, as a torch module and as an ONNX file."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path

import onnx
import pytest
import strategies
import torch
from branching import SETTINGS, Switchable, switchable_graphs
from hypothesis import given, settings
from torch import nn

import suture
from suture.backends.onnx import export_onnx
from suture.backends.onnxruntime import OnnxModel
from suture.frontends.archive import load_graph, save_graph
from suture.ir import semantics
from suture.ir.control import choose, guard
from suture.ir.equality import same_graph
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph, Value
from suture.ir.interface import (
    add_interface_input,
    add_interface_output,
    bind_interface_input,
    remove_interface_output,
)
from suture.ir.regions import at_path
from suture.ir.semantics import evaluate
from suture.ir.sizes import symbol
from suture.ir.splice import extract, graft
from suture.ir.text import parse_graph
from suture.ir.types import TensorType
from suture.ir.verify import verify
from suture.passes.proof import in_double

BOOL = TensorType(torch.bool, ())
YES, NO = torch.tensor(True), torch.tensor(False)

NESTED = """\
graph nested(%x: f32[batch, 4], %p: bool[], %q: bool[]) {
  parameter @w: f32[4, 4]

  %y: f32[batch, 4] = branch(%p, %x, @w, %q) then=graph deep(%x: f32[batch, 4], %w: f32[4, 4], %q: bool[]) {
    %h: f32[batch, 4] = linear(%x, %w)
    %z: f32[batch, 4] = branch(%q, %h) then=graph up(%h: f32[batch, 4]) {
      %one: f32[batch, 4] = full() value=1.0
      %s: f32[batch, 4] = add(%h, %one)
      return %s
    } otherwise=graph same(%h: f32[batch, 4]) {
      return %h
    }
    return %z
  } otherwise=graph skip(%x: f32[batch, 4], %w: f32[4, 4], %q: bool[]) {
    return %x
  } at layers.3
  return %y
}
"""


def nested() -> Graph:
    return parse_graph(NESTED, {"w": torch.arange(16.0).reshape(4, 4)})


class Block(nn.Module):
    """A residual block with a norm that counts and a dropout."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.fc, self.drop = nn.BatchNorm1d(width), nn.Linear(width, width), nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.drop(self.fc(self.norm(x)))


class Net(nn.Module):
    """Blocks of which each may be passed by."""

    def __init__(self, blocks: int = 2, width: int = 8) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(5, width), nn.Linear(width, 3)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))

    def forward(self, x: torch.Tensor, keep: tuple[bool, ...] = (True, True)) -> torch.Tensor:
        x = self.stem(x)
        for block, kept in zip(self.blocks, keep, strict=True):
            x = block(x) if kept else x
        return self.head(x)


def guarded(seed: int = 0) -> tuple[Net, Graph]:
    """A net, and its graph with an input `keep: bool[2]` that says which blocks run."""
    torch.manual_seed(seed)
    net = Net().eval()
    graph = suture.trace(net, (torch.randn(4, 5),), dynamic={"x": {0: "batch"}})
    keep = add_interface_input(graph, "keep", TensorType(torch.bool, (2,)))
    for k in range(2):
        predicate = graph.add("select", [keep], {"dim": 0, "index": k}).output
        guard(at_path(graph, f"blocks.{k}"), predicate)
    verify(graph)
    return net, graph


# text, equality, archive


def test_a_nested_branch_prints_and_parses_back() -> None:
    graph = nested()
    assert str(graph) == NESTED
    again = parse_graph(str(graph), {"w": graph.parameters["w"].data})
    verify(again)
    assert same_graph(graph, again, weights=True) is None


def test_the_first_difference_of_two_bodies_is_named() -> None:
    other = parse_graph(NESTED.replace("value=1.0", "value=2.0"))
    assert same_graph(nested(), other) == (
        "node 0, then: node 1, then: node 0: %one: f32[batch, 4] = full() dtype=f32 value=1.0 at '' and "
        "%one: f32[batch, 4] = full() dtype=f32 value=2.0 at ''"
    )


def test_a_parameter_in_a_body_does_not_parse() -> None:
    with pytest.raises(SutureError, match="a body without parameters") as caught:
        parse_graph(
            NESTED.replace("    %h: f32[batch, 4] = linear", "    parameter @v: f32[2]\n    %h: f32[batch, 4] = linear")
        )
    assert caught.value.where == "graph:5:5"


def test_a_symbol_that_only_a_body_has_is_refused() -> None:
    with pytest.raises(SutureError, match="no input binds the size rows"):
        parse_graph(
            NESTED.replace("%one: f32[batch, 4] = full()", "%one: f32[rows, 4] = full()").replace(
                "add(%h, %one)", "neg(%h)"
            )
        )


def test_an_archive_keeps_bodies(tmp_path: Path) -> None:
    graph = nested()
    save_graph(graph, tmp_path / "nested.suture-graph")
    assert same_graph(graph, load_graph(tmp_path / "nested.suture-graph"), weights=True) is None


def test_a_copy_shares_the_bodies() -> None:
    graph = nested()
    twin = graph.copy()
    verify(twin)
    assert twin.nodes[0].bodies["then"] is graph.nodes[0].bodies["then"]


# semantics


def by_hand(x: torch.Tensor, w: torch.Tensor, p: bool, q: bool) -> torch.Tensor:
    if not p:
        return x
    return x @ w.T + 1 if q else x @ w.T


def test_only_the_chosen_body_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, ran = nested(), list[str]()
    run_node = semantics.run_node

    def counted(node: object, *rest: object, **more: object) -> object:
        ran.append(node.operator.name)  # type: ignore[attr-defined]
        return run_node(node, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(semantics, "run_node", counted)
    x, w = torch.randn(3, 4), graph.parameters["w"].data
    expected = {
        (False, False): ["branch"], (False, True): ["branch"], (True, False): ["branch", "linear", "branch"],
        (True, True): ["branch", "linear", "branch", "full", "add"],
    }  # fmt: skip
    for (p, q), operators in expected.items():
        ran.clear()
        (y,) = evaluate(graph, [x, torch.tensor(p), torch.tensor(q)])
        assert ran == operators
        torch.testing.assert_close(y, by_hand(x, w, p, q))


def test_training_in_a_body_updates_running_statistics_only_where_it_runs() -> None:
    _, graph = guarded()
    buffers = {name: p.data.clone() for name, p in graph.parameters.items() if p.role == "buffer"}
    start = {name: tensor.clone() for name, tensor in buffers.items()}
    evaluate(graph, [torch.randn(6, 5), torch.tensor([True, False])], training=True, parameters=buffers)
    assert not torch.equal(buffers["blocks.0.norm.running_mean"], start["blocks.0.norm.running_mean"])
    assert torch.equal(buffers["blocks.1.norm.running_mean"], start["blocks.1.norm.running_mean"])


def test_on_the_meta_device_types_are_known() -> None:
    graph = parse_graph(NESTED)
    meta = [torch.empty(2, 4, device="meta"), torch.empty((), dtype=torch.bool, device="meta")]
    (y,) = evaluate(graph, [*meta, meta[1]])
    assert y.shape == (2, 4)


def test_a_branch_costs_its_dearer_body_and_parameters_count_once() -> None:
    graph = nested()
    assert graph.stats().macs == 16
    assert graph.stats().symbolic_macs == 16 * symbol("batch")
    assert graph.stats().parameters == 16
    net, switch = guarded()
    assert switch.stats().parameters == sum(p.numel() for p in net.parameters())
    assert switch.stats().macs == 5 * 8 + 2 * 8 * 8 + 8 * 3


def test_axes_that_a_branch_touches_are_pinned_with_the_reason() -> None:
    _, graph = guarded()
    pins = {info.name: str(info.pin) for info in graph.axes().infos.values() if info.pin is not None}
    assert pins["blocks.0.fc.weight[0]"] == "decided at run time by branch (blocks.0)"
    assert suture.passes.prune(graph, keep=0.5).history[-1].outcome == "not applicable"


def test_bodies_go_along_into_float64() -> None:
    graph = in_double(nested())
    verify(graph)
    x, w = torch.randn(2, 4, dtype=torch.float64), graph.parameters["w"].data
    (y,) = evaluate(graph, [x, YES, YES])
    assert y.dtype == torch.float64
    torch.testing.assert_close(y, by_hand(x, w, True, True))


@settings(max_examples=40)
@given(switchable_graphs())
def test_random_branches_compute_what_the_plain_graphs_do(drawn: Switchable) -> None:
    verify(drawn.graph)
    module = suture.to_torch(drawn.graph)
    again = parse_graph(str(drawn.graph), {name: p.data for name, p in drawn.graph.parameters.items()})
    for setting in range(SETTINGS):
        plain = drawn.plain[setting]
        for sizes in ({"batch": 2}, {"batch": 3}) if plain.symbols() else ({},):
            inputs = strategies.run_inputs(plain, **sizes)
            expected = evaluate(plain, inputs)
            chosen = [*inputs, torch.tensor(setting)]
            results = module(*chosen)
            for runs in (
                evaluate(drawn.graph, chosen),
                evaluate(again, chosen),
                results if isinstance(results, tuple) else (results,),
            ):
                for a, b in zip(expected, runs, strict=True):
                    torch.testing.assert_close(b, a, equal_nan=True)


# torch


def test_a_module_runs_what_the_tensor_says() -> None:
    net, graph = guarded()
    module = suture.to_torch(graph)
    x = torch.randn(3, 5)
    for keep in ((True, True), (True, False), (False, True), (False, False)):
        torch.testing.assert_close(module(x, torch.tensor(keep)), net(x, keep))
        torch.testing.assert_close(module(x, keep=torch.tensor(keep)), net(x, keep))
    assert list(module.state_dict()) == list(net.state_dict())


def test_gradients_reach_only_what_ran() -> None:
    net, graph = guarded()
    reference = copy.deepcopy(net)
    module = suture.to_torch(graph)
    x = torch.randn(3, 5)
    module(x, torch.tensor([False, True])).square().sum().backward()
    reference(x, (False, True)).square().sum().backward()
    assert module.get_parameter("blocks.0.fc.weight").grad is None
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(module.get_parameter(name).grad, parameter.grad)


def test_training_mode_reaches_norms_and_dropout_in_bodies() -> None:
    net, graph = guarded()
    reference = copy.deepcopy(net)
    module = suture.to_torch(graph.copy())
    module.train()
    reference.train()
    x = torch.randn(16, 5)
    for keep in ((True, False), (True, True), (False, True)):
        torch.manual_seed(3)
        found = module(x, torch.tensor(keep))
        torch.manual_seed(3)
        torch.testing.assert_close(found, reference(x, keep))
    for name, tensor in reference.state_dict().items():
        torch.testing.assert_close(module.state_dict()[name], tensor, msg=name)
    assert int(module.get_buffer("blocks.0.norm.num_batches_tracked")) == 2
    module.eval()
    reference.eval()
    torch.testing.assert_close(module(x, torch.tensor([True, True])), reference(x))


def test_a_module_with_branches_is_pickled_saved_and_copied() -> None:
    _, graph = guarded()
    module = suture.to_torch(graph)
    x, keep = torch.randn(3, 5), torch.tensor([True, False])
    expected = module(x, keep)
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=False)
    unpickled = pickle.loads(pickle.dumps(module))
    for twin in (copy.deepcopy(module), unpickled, saved, pickle.loads(pickle.dumps(copy.deepcopy(unpickled)))):
        torch.testing.assert_close(twin(x, keep), expected)
        assert list(twin.state_dict()) == list(module.state_dict())
        assert sum("bodies" in name for name, _ in twin.named_children()) == 1
        twin.train()(torch.randn(8, 5), keep)
        assert int(twin.get_buffer("blocks.0.norm.num_batches_tracked")) == 1
        assert int(twin.get_buffer("blocks.1.norm.num_batches_tracked")) == 0


# ONNX


@pytest.mark.parametrize("opset", range(17, 24))
def test_a_branch_is_an_if_in_every_operator_set(opset: int, tmp_path: Path) -> None:
    graph = nested()
    export_onnx(graph, tmp_path / "nested.onnx", opset=opset)
    model = OnnxModel(tmp_path / "nested.onnx", threads=1)
    for rows in (1, 5):
        x = torch.randn(rows, 4)
        for p, q in ((False, True), (True, False), (True, True)):
            (found,) = model.run([x, torch.tensor(p), torch.tensor(q)])
            torch.testing.assert_close(found, by_hand(x, graph.parameters["w"].data, p, q))


def test_the_bodies_of_an_onnx_file_hold_no_weights(tmp_path: Path) -> None:
    _, graph = guarded()
    export_onnx(graph, tmp_path / "net.onnx")
    proto = onnx.load(tmp_path / "net.onnx").graph
    branches = [node for node in proto.node if node.op_type == "If"]
    assert len(branches) == 2
    for node in branches:
        for attribute in node.attribute:
            assert not attribute.g.initializer
            assert not attribute.g.input
    names = [tensor.name for tensor in proto.initializer]
    assert len(names) == len(set(names))
    assert sum(name.startswith("blocks.0.fc.weight") for name in names) == 1


@settings(max_examples=8)
@given(drawn=switchable_graphs())
def test_onnx_runtime_follows_the_setting(drawn: Switchable, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("switch") / "graph.onnx"
    export_onnx(drawn.graph, path)
    model = OnnxModel(path, threads=1)
    for setting in range(SETTINGS):
        plain = drawn.plain[setting]
        inputs = strategies.run_inputs(plain, **({"batch": 3} if plain.symbols() else {}))
        given_inputs = {v.name: t for v, t in zip(drawn.graph.inputs, [*inputs, torch.tensor(setting)], strict=True)}
        found = model.run({name: tensor for name, tensor in given_inputs.items() if name in model.inputs})
        for a, b in zip(evaluate(plain, inputs), found, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-4, equal_nan=True)


# making branches


def test_a_guarded_region_keeps_its_result_name_and_its_parameters() -> None:
    net, graph = guarded()
    original = suture.trace(net, (torch.randn(4, 5),), dynamic={"x": {0: "batch"}})
    assert list(graph.parameters) == list(original.parameters)
    assert all(graph.parameters[name].data is p for name, p in net.named_parameters())
    assert [node.operator.name for node in graph.nodes].count("branch") == 2
    assert {node.output.name for node in graph.nodes if node.bodies} == {
        at_path(original, f"blocks.{k}").output.name for k in range(2)
    }


def test_pieces_of_two_models_become_the_sides_of_a_choice() -> None:
    torch.manual_seed(0)
    a, b = nn.Linear(5, 3), nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
    x = torch.randn(4, 5)
    left, right = (suture.trace(module, (x,), dynamic=[{0: "batch"}]) for module in (a, b))
    graph = Graph("choice")
    stream, p = graph.add_input("x", TensorType(torch.float32, (symbol("rows"), 5))), graph.add_input("p", BOOL)
    graph.set_outputs(choose(graph, p, left, right, [stream], rename=lambda name: f"net.{name}"))
    verify(graph)
    assert list(graph.parameters) == [
        "net.weight",
        "net.bias",
        "net.0.weight",
        "net.0.bias",
        "net.2.weight",
        "net.2.bias",
    ]
    module = suture.to_torch(graph)
    for rows in (1, 6):
        x = torch.randn(rows, 5)
        torch.testing.assert_close(module(x, YES), a(x))
        torch.testing.assert_close(module(x, NO), b(x))


def test_the_same_tensor_in_both_pieces_is_one_parameter() -> None:
    graph = nested()
    region = at_path(graph, "layers.3")
    same = extract(region)
    target = Graph("twice")
    operands: list[Value] = [target.add_input(value.name, value.type) for value in region.inputs]
    choose(target, target.add_input("r", BOOL), extract(region), same, operands)
    assert list(target.parameters) == ["w"]


def test_a_region_that_changes_its_stream_is_not_guarded() -> None:
    _, graph = guarded()
    p = graph.add_input("p", BOOL)
    before = str(graph)
    with pytest.raises(SutureError, match=r"stem takes f32\[batch, 5\] and gives f32\[batch, 8\]") as caught:
        guard(at_path(graph, "stem"), p)
    assert caught.value.code is Code.SEAM
    with pytest.raises(SutureError, match=r"the predicate %x is f32\[batch, 5\]") as caught:
        guard(at_path(graph, "blocks.0"), graph.inputs[0])
    assert caught.value.code is Code.SEAM
    assert str(graph) == before


def test_a_predicate_from_inside_the_region_is_refused() -> None:
    graph = parse_graph("""graph g(%x: f32[4]) {
      %a: f32[4] = relu(%x) at block
      %m: f32[] = amax(%a) dims=(0,)
      %p: bool[] = gt(%m) scalar=0.0
      return %a, %p
    }""")
    with pytest.raises(SutureError, match="%p is made by the region") as caught:
        guard(at_path(graph, "block"), graph.nodes[2].output)
    assert caught.value.code is Code.SEAM


def test_pieces_of_other_types_are_no_choice() -> None:
    graph = Graph("choice")
    x, p = graph.add_input("x", TensorType(torch.float32, (4,))), graph.add_input("p", BOOL)
    same = parse_graph("graph a(%x: f32[4]) { return %x }")
    other = parse_graph("graph b(%x: f32[4]) { %y: f32[] = sum(%x) dims=(0,) return %y }")
    wider = parse_graph("graph c(%x: f32[5]) { return %x }")
    for piece, words in ((other, r"b gives f32\[\] where"), (wider, r"c takes %x: f32\[5\]")):
        with pytest.raises(SutureError, match=words) as caught:
            choose(graph, p, same, piece, [x])
        assert caught.value.code is Code.SEAM
    assert len(graph) == 0


# the interface


class Nest(nn.Module):
    """Arguments and results that are nested, one of them no tensor."""

    def forward(self, x: torch.Tensor, pair: dict[str, torch.Tensor], flag: bool = True) -> dict[str, torch.Tensor]:
        return {"sum": x + pair["a"], "last": pair["b"] if flag else x}


def test_an_input_and_an_output_more_keep_the_calling_convention() -> None:
    x, pair = torch.randn(2, 3), {"a": torch.randn(2, 3), "b": torch.randn(3)}
    graph = suture.trace(Nest(), (x, pair))
    gain = add_interface_input(graph, "gain", TensorType(torch.float32, ()))
    scaled = graph.add("mul", [graph.outputs[0], gain]).output
    add_interface_output(graph, scaled, "scaled")
    verify(graph)
    module = suture.to_torch(graph)
    found = module(x, pair, gain=torch.tensor(3.0))
    assert list(found) == ["sum", "last", "scaled"]
    torch.testing.assert_close(found["scaled"], 3 * (x + pair["a"]))
    bound = graph.copy()
    bind_interface_input(bound, "gain", torch.tensor(2.0))
    torch.testing.assert_close(suture.to_torch(bound)(x, pair)["scaled"], 2 * (x + pair["a"]))
    nested_one = next(value.name for value in graph.inputs if value.shape == (3,))
    bind_interface_input(bound, nested_one, torch.ones(3))
    torch.testing.assert_close(suture.to_torch(bound)(x, pair)["last"], torch.ones(3))
    text = str(bound)
    assert same_graph(parse_graph(text), bound) is None


def test_an_output_that_goes_leaves_the_result_as_it_was() -> None:
    x, pair = torch.randn(2, 3), {"a": torch.randn(2, 3), "b": torch.randn(3)}
    graph = suture.trace(Nest(), (x, pair))
    before = graph.structure
    names = list(graph.output_names)
    for name in ("first", "second"):
        add_interface_output(graph, graph.inputs[0], name)
    for name in ("first", "second"):
        remove_interface_output(graph, name)
    assert graph.structure == before
    remove_interface_output(graph, names[0])
    assert list(suture.to_torch(graph)(x, pair)) == ["last"]
    with pytest.raises(SutureError, match=f"{names[1]} is the only output"):
        remove_interface_output(graph, names[1])
    with pytest.raises(SutureError, match="no output 'first'"):
        remove_interface_output(graph, "first")
    single = suture.trace(nn.Linear(3, 2), (x,))
    before = single.structure
    add_interface_output(single, single.inputs[0], "x")
    assert isinstance(suture.to_torch(single)(x), tuple)
    remove_interface_output(single, "x")
    assert single.structure == before


def test_a_piece_with_branches_takes_the_sizes_of_the_graph_it_is_put_into() -> None:
    target = Graph("target")
    x = target.add_input("x", TensorType(torch.float32, (2 * symbol("rows"), 4)))
    flags = [target.add_input(name, BOOL) for name in ("p", "q")]
    target.set_outputs(graft(target, nested(), [x, *flags]))
    verify(target)
    for rows in (1, 3):
        x_value = torch.randn(2 * rows, 4)
        w = target.parameters["w"].data
        (found,) = evaluate(target, [x_value, YES, YES])
        torch.testing.assert_close(found, by_hand(x_value, w, True, True))


def test_a_body_takes_sizes_that_none_of_its_operands_has() -> None:
    piece = parse_graph("""graph piece(%x: f32[batch, 4], %p: bool[]) {
      %y: f32[batch, 4] = branch(%p) then=graph ones() { %f: f32[batch, 4] = full() value=1.0 return %f }
        otherwise=graph zeros() { %f: f32[batch, 4] = full() return %f }
      %z: f32[batch, 4] = add(%x, %y)
      return %z
    }""")
    target = Graph("target")
    x, p = target.add_input("x", TensorType(torch.float32, (symbol("rows"), 4))), target.add_input("p", BOOL)
    target.set_outputs(graft(target, piece, [x, p]))
    verify(target)
    for module in (suture.to_torch(target), lambda *inputs: evaluate(target, inputs)[0]):
        torch.testing.assert_close(module(torch.ones(3, 4), YES), 2 * torch.ones(3, 4))
        torch.testing.assert_close(module(torch.ones(3, 4), NO), torch.ones(3, 4))


def test_an_argument_behind_optional_ones_is_asked_for() -> None:
    class Optional(nn.Module):
        def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
            return x if mask is None else x * mask

    x = torch.randn(3)
    graph = suture.trace(Optional(), (x,))
    gain = add_interface_input(graph, "gain", TensorType(torch.float32, ()))
    add_interface_output(graph, graph.add("mul", [graph.inputs[0], gain]).output, "scaled")
    module = suture.to_torch(graph)
    plain, scaled = module(x, gain=torch.tensor(2.0))
    torch.testing.assert_close(plain, x)
    torch.testing.assert_close(scaled, 2 * x)


def test_names_and_types_of_the_interface_are_checked() -> None:
    _, graph = guarded()
    with pytest.raises(SutureError, match="%x is still read"):
        graph.remove_input(graph.inputs[0])
    with pytest.raises(SutureError, match="the name 'keep' is taken"):
        add_interface_input(graph, "keep", BOOL)
    with pytest.raises(SutureError, match="an output is called"):
        add_interface_output(graph, graph.outputs[0], graph.output_names[0])
    with pytest.raises(SutureError, match="no input 'kep'; the nearest is 'keep'"):
        bind_interface_input(graph, "kep", YES)
    with pytest.raises(SutureError, match=r"the input keep cannot be bool\[\]; bool\[2\] would be right"):
        bind_interface_input(graph, "keep", YES)
