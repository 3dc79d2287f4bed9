"""The pass `gradient`: what goes in and comes out, what is refused, and what may be done with the result."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from gradients import F64, MLP, assert_gradients, drawn, expected, read
from torch import nn

import suture
from suture.ir.equality import same_graph
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph
from suture.ir.semantics import evaluate
from suture.ir.text import parse_graph, print_graph
from suture.ir.verify import verify


def test_before_and_after() -> None:
    made = suture.passes.gradient(parse_graph(MLP), recompute="nothing")
    body = print_graph(made).split("\n\n", 1)[1]
    assert (
        body
        == """\
  %high: f32[batch, 4] = linear(%x, @up, @c) at up
  %bent: f32[batch, 4] = tanh(%high) at act
  %y: f32[batch, 2] = linear(%bent, @down) at down
  %matmul: f32[batch, 4] = matmul(%grad_y, @down) at down
  %permute: f32[2, batch] = permute(%grad_y) dims=(1, 0) at down
  %grad_down: f32[2, 4] = matmul(%permute, %bent) at down
  %mul: f32[batch, 4] = mul(%bent, %bent) at act
  %sub: f32[batch, 4] = sub(_, %mul) scalar=1 at act
  %mul_1: f32[batch, 4] = mul(%matmul, %sub) at act
  %grad_x: f32[batch, 3] = matmul(%mul_1, @up) at up
  %permute_1: f32[4, batch] = permute(%mul_1) dims=(1, 0) at up
  %grad_up: f32[4, 3] = matmul(%permute_1, %x) at up
  %grad_c: f32[4] = sum(%mul_1) dims=(0,) at up
  return %y, %grad_x, %grad_up, %grad_c, %grad_down
}
"""
    )
    assert [str(value.type) for value in made.inputs] == ["f32[batch, 3]", "f32[batch, 2]"]
    assert made.history[-1].notes == ("16 bytes live from the way forward to the way back",)


def test_it_prints_and_parses_back() -> None:
    made = suture.passes.gradient(read(MLP))
    again = parse_graph(print_graph(made), {name: p.data for name, p in made.parameters.items()})
    assert same_graph(made, again, weights=True) is None


@pytest.mark.parametrize("batch", [1, 2, 5, 0])
def test_symbolic_sizes_stay_symbolic(batch: int) -> None:
    graph = read(MLP)
    inputs = {"x": torch.randn(batch, 3, dtype=F64)}
    made = suture.passes.gradient(graph)
    cotangents = drawn(graph, inputs)
    received = dict(zip(made.output_names, evaluate(made, [*inputs.values(), *cotangents]), strict=True))
    for name, right in expected(graph, inputs, cotangents).items():
        torch.testing.assert_close(received[name], right, rtol=1e-10, atol=1e-12)


SPACE = """\
graph space(%x: f32[n, 2, h, w]) {
  hints n=2 h=9 w=8
  parameter @k: f32[4, 2, 3, 2]
  parameter @l: f32[4, 1, 3, 3]
  parameter @t: f32[4, 3, 2, 2]

  %a: f32[n, 4, (h - 1) // 2 + 1, w // 2 + 1] = conv(%x, @k, _) stride=(2, 2) padding=(1, 1)
  %b: f32[n, 4, (h - 1) // 2 + 1, w // 2 + 1] = conv(%a, @l, _) padding=(1, 1) groups=4
  %c: f32[n, 4, (h - 1) // 2, w // 2] = max_pool(%b) kernel=(2, 2) stride=(1, 1) padding=(0, 0) dilation=(1, 1)
  %d: f32[n, 3, 2*((h - 1) // 2), 2*(w // 2)] = conv_transpose(%c, @t, _) stride=(2, 2)
  %e: f32[n, 3, 2*((h - 1) // 2) + 2, 2*(w // 2) + 1] = pad(%d) pads=(0, 0, 1, 0, 0, 0, 1, 1) mode="reflect"
  %y: f32[n, 3, 1, 1] = adaptive_avg_pool(%e)
  return %y, %e
}
"""


@pytest.mark.parametrize("size", [(1, 9, 8), (2, 6, 7), (3, 12, 5)])
def test_images_of_symbolic_size(size: tuple[int, int, int]) -> None:
    graph = read(SPACE)
    made = suture.passes.gradient(graph)
    verify(made)
    assert same_graph(made, parse_graph(print_graph(made))) is None
    n, h, w = size
    assert_gradients(graph, made, {"x": torch.randn(n, 2, h, w, dtype=F64)})


def test_only_what_is_asked_for_is_computed() -> None:
    made = suture.passes.gradient(read(MLP), wrt=("down",))
    assert made.output_names == ["y", "grad_down"]
    assert [node.operator.name for node in made.nodes] == ["linear", "tanh", "linear", "permute", "matmul"]


def test_patterns_choose_parameters_and_pass_over_integers() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double().eval()
    graph = suture.trace(module, torch.randn(2, 3, dtype=F64))
    assert suture.passes.gradient(graph, wrt=("0.*", "1.*_mean")).output_names == [
        "output",
        "grad_0.weight",
        "grad_0.bias",
    ]
    assert "grad_1.running_mean" not in suture.passes.gradient(graph).output_names


def test_frozen_parameters_and_integers_have_no_gradient() -> None:
    graph = read("""\
graph g(%x: f32[2, 3], %i: i64[2]) {
  parameter @w: f32[3, 3] frozen
  buffer @b: f32[3]
  %y: f32[2, 3] = linear(%x, @w, @b)
  %z: i64[2] = add(%i, _) scalar=1
  return %y, %z
}
""")
    made = suture.passes.gradient(graph)
    assert [value.name for value in made.inputs] == ["x", "i", "grad_y"]
    assert made.output_names == ["y", "z", "grad_x"]
    assert suture.passes.gradient(graph, wrt=("w", "b")).output_names == ["y", "z", "grad_w", "grad_b"]


def test_a_loss_may_have_the_cotangent_one() -> None:
    graph = read(MLP.replace("%y: f32[batch, 2] = linear(%bent, @down) at down", "%out: f32[batch, 2] = linear(%bent, @down)\n  %y: f32[] = mean(%out) dims=(0, 1)"))  # fmt: skip
    made = suture.passes.gradient(graph, unit=True)
    assert [value.name for value in made.inputs] == ["x"]
    assert made.history[-1].contract == "exact" and made.history[-1].deviation == 0
    inputs = {"x": torch.randn(3, 3, dtype=F64)}
    received = dict(zip(made.output_names, evaluate(made, inputs), strict=True))
    for name, right in expected(graph, inputs, [torch.ones((), dtype=F64)]).items():
        torch.testing.assert_close(received[name], right, rtol=1e-10, atol=1e-12)


def test_outputs_that_are_not_named_have_no_cotangent() -> None:
    graph = read("""\
graph g(%x: f32[3]) {
  %a: f32[3] = sin(%x)
  %b: f32[3] = exp(%x)
  return %a, %b
}
""")
    made = suture.passes.gradient(graph, of=("b",))
    assert [value.name for value in made.inputs] == ["x", "grad_b"]
    x, g = torch.randn(2, 3, dtype=F64)
    torch.testing.assert_close(evaluate(made, [x, g])[2], g * x.exp())


def test_a_value_returned_twice_and_one_that_is_passed_through_get_the_sum() -> None:
    graph = read("""\
graph g(%x: f32[3]) {
  %a: f32[3] = sin(%x)
  return %a as first, %a as second, %x as third
}
""")
    made = suture.passes.gradient(graph)
    x, g, h, k = torch.randn(4, 3, dtype=F64)
    torch.testing.assert_close(evaluate(made, [x, g, h, k])[3], (g + h) * x.cos() + k)


def test_tied_weights_get_both_contributions() -> None:
    graph = read("""\
graph g(%i: i64[2, 3]) {
  parameter @table: f32[7, 4]
  %e: f32[2, 3, 4] = embedding(@table, %i)
  %h: f32[2, 3, 4] = tanh(%e)
  %y: f32[2, 3, 7] = linear(%h, @table)
  return %y
}
""")
    assert_gradients(graph, suture.passes.gradient(graph), {"i": torch.tensor([[0, 6, 0], [3, 3, 2]])})


def test_names_that_are_taken_get_others() -> None:
    graph = read("""\
graph g(%y: f32[3], %grad_y: f32[3]) {
  %z: f32[3] = mul(%y, %grad_y)
  return %z as y, %z as grad_y
}
""")
    made = suture.passes.gradient(graph)
    verify(made)
    assert len(set(made.output_names)) == 4 and len({value.name for value in made.inputs}) == 4


def test_a_script_may_ask_for_it_and_shapes_suffice_to_plan_it(tmp_path: Path) -> None:
    (tmp_path / "nets_to_differentiate.py").write_text("""
from torch import nn

def small():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AvgPool2d(3, 2), nn.Flatten(), nn.Linear(8, 3))
""")
    (tmp_path / "step.suture").write_text("""suture 1
model net = torch "nets_to_differentiate:small" input f32[batch, 1, 7, 7]
gradient net wrt "0.*", "4.weight" recompute nothing
save net to "step.suture-graph"
""")
    report = suture.run(tmp_path / "step.suture")
    assert "gradient" in str(report)
    made = suture.load(tmp_path / "step.suture-graph")
    assert made.output_names == ["output", "grad_0.weight", "grad_0.bias", "grad_4.weight"]
    entry = zoo.ENTRIES["resnet18"]
    planned = suture.trace(entry.module(), *entry.args())
    for parameter in planned.parameters.values():
        parameter.assign(parameter.data.to("meta"))
    assert len(suture.passes.gradient(planned).outputs) > len(planned.parameters) // 2


# what is refused


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"wrt": ("uo",)}, "'up'"),
        ({"of": ("z",)}, "output 'z'"),
        ({"wrt": ("count",)}, "i64"),
        ({"wrt": ("apart",)}, "no output moves with @apart"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_for(options: dict[str, Any], what: str) -> None:
    graph = read(MLP.replace("parameter @up", "buffer @count: i64[1]\n  parameter @apart: f32[2]\n  parameter @up"))
    with pytest.raises(SutureError) as caught:
        suture.passes.gradient(graph, **options)
    assert caught.value.code is Code.GRADIENT and what in str(caught.value) and caught.value.remedy


@pytest.mark.parametrize(
    ("line", "operator"),
    [
        ('opaque(%h) target="aten.t.default" arguments="{}" dtypes=(f32,)', "opaque"),
        ("adaptive_avg_pool(%h) rank=1", "adaptive_avg_pool"),
    ],
)
def test_an_operator_without_derivative_is_named_with_its_place(line: str, operator: str) -> None:
    graph = parse_graph(f"""\
graph g(%x: f32[3, n]) {{
  %h: f32[3, n] = sin(%x)
  %y: f32[3, 5] = {line} at stem.pool
  return %y
}}
""")
    with pytest.raises(SutureError) as caught:
        suture.passes.gradient(graph)
    assert caught.value.code is Code.GRADIENT
    assert operator in str(caught.value) and "stem.pool" in str(caught.value) and "%y" in str(caught.value)


def test_what_stands_beside_the_way_needs_no_derivative() -> None:
    graph = read("""\
graph g(%x: f32[3, 4], %m: f32[4, 3]) {
  %t: f32[3, 4] = opaque(%m) target="aten.t.default" arguments="{\\"args\\": [{\\"$\\": 0}], \\"kwargs\\": {}}" dtypes=(f32,)
  %y: f32[3, 4] = mul(%x, %t)
  return %y
}
""")
    made = suture.passes.gradient(graph, wrt=("x",))
    x, m, g = (torch.randn(s, dtype=F64) for s in ((3, 4), (4, 3), (3, 4)))
    torch.testing.assert_close(evaluate(made, [x, m, g])[1], g * m.T)


def test_recurrence_of_unknown_length_is_refused() -> None:
    entry = zoo.ENTRIES["lstm"]
    graph = suture.trace(entry.module(), *entry.args(), dynamic=entry.dynamic)
    with pytest.raises(SutureError, match="sequence steps") as caught:
        suture.passes.gradient(graph)
    assert caught.value.code is Code.GRADIENT


def test_where_nothing_moves_it_does_nothing_and_says_so() -> None:
    graph = read("graph g(%x: f32[3]) {\n  %y: f32[3] = floor(%x)\n  return %y\n}\n")
    made = suture.passes.gradient(graph)
    assert made.history[-1].outcome == "not applicable" and made.output_names == ["y"]


# the way back is a graph like any other


def test_a_gradient_has_a_gradient() -> None:
    graph = read(MLP)
    once = suture.passes.gradient(graph, wrt=("x",))
    twice = suture.passes.gradient(once, of=("grad_x",), wrt=("x", "up", "down", "grad_y"))
    x = torch.randn(2, 3, dtype=F64, requires_grad=True)
    g, v = torch.randn(2, 2, dtype=F64, requires_grad=True), torch.randn(2, 3, dtype=F64)
    weights = {name: p.data.clone().requires_grad_() for name, p in graph.parameters.items()}
    (y,) = evaluate(graph, [x], parameters=weights)
    (first,) = torch.autograd.grad(y, x, g, create_graph=True)
    right = torch.autograd.grad(first, [x, weights["up"], weights["down"], g], v)
    received = dict(zip(twice.output_names, evaluate(twice, [x.detach(), g.detach(), v]), strict=True))
    for name, value in zip(
        ("grad_x_", "grad_grad_y", "grad_up", "grad_down"), (right[0], right[3], right[1], right[2]), strict=True
    ):
        torch.testing.assert_close(received[name], value, rtol=1e-10, atol=1e-12)


class _Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 4)
        self.conv, self.norm, self.pool = nn.Conv2d(1, 3, 3, padding=1), nn.GroupNorm(1, 3), nn.MaxPool2d(2)
        self.head = nn.Linear(6, 5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.table(tokens).unsqueeze(1)
        x = self.pool(torch.relu(self.norm(self.conv(x))))
        return torch.log_softmax(self.head(x.permute(0, 2, 1, 3).flatten(2)), -1)


def _convolutional() -> tuple[Graph, torch.Tensor]:
    torch.manual_seed(0)
    tokens = torch.randint(0, 9, (2, 6))
    return suture.trace(_Convolutional().eval(), tokens, dynamic={"tokens": {0: "batch"}}), tokens


def test_second_derivatives_through_convolution_pooling_and_lookup() -> None:
    module = _Convolutional().double().eval()
    tokens = torch.randint(0, 9, (2, 6))
    graph = suture.trace(module, tokens)
    once = suture.passes.gradient(graph, wrt=("conv.weight",))
    twice = suture.passes.gradient(once, of=("grad_conv.weight",), wrt=("table.weight", "conv.weight", "head.weight"))
    y = module(tokens)
    g, v = torch.randn_like(y), torch.randn(3, 1, 3, 3, dtype=F64)
    (first,) = torch.autograd.grad(y, module.conv.weight, g, create_graph=True)
    right = torch.autograd.grad(first, [module.table.weight, module.conv.weight, module.head.weight], v)
    received = evaluate(twice, [tokens, g, v])[-3:]
    for ours, value in zip(received, right, strict=True):
        torch.testing.assert_close(ours, value, rtol=1e-9, atol=1e-11)


def test_it_becomes_a_torch_module() -> None:
    graph, tokens = _convolutional()
    made = suture.passes.gradient(graph)
    g = torch.randn(2, 3, 5)
    given = {value.name: t for value, t in zip(made.inputs, (tokens, g), strict=True)}
    module = suture.to_torch(made)
    with torch.no_grad():
        received, right = module(tokens, **{made.inputs[1].name: g}), evaluate(made, given)
    for ours, value in zip(received, right, strict=True):
        torch.testing.assert_close(ours, value)


def test_it_leaves_as_onnx(tmp_path: Path) -> None:
    graph, tokens = _convolutional()
    made = suture.passes.gradient(graph)
    suture.export_onnx(made, tmp_path / "gradient.onnx")
    report = suture.compare(made, tmp_path / "gradient.onnx", [tokens, torch.randn(2, 3, 5)])
    assert max(output.max_abs for output in report.outputs) < 1e-4


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="no C++ compiler on this machine")
def test_it_compiles() -> None:
    graph, tokens = _convolutional()
    made = suture.passes.gradient(graph)
    given = [tokens, torch.randn(2, 3, 5)]
    with torch.no_grad():
        received, right = suture.compile(made)(*given), evaluate(made, given)
    for ours, value in zip(received, right, strict=True):
        torch.testing.assert_close(ours, value, rtol=1e-4, atol=1e-5)


def test_fused_operators_are_written_out_where_they_are_differentiated() -> None:
    entry = zoo.ENTRIES["hf_vit"]
    args, kwargs = entry.args()
    traced = suture.trace(entry.module().double(), args, {k: v.double() for k, v in kwargs.items()})
    graph = suture.passes.fuse(traced, include=("all",))
    assert {"multi_head_attention", "bias_gelu"} & {node.operator.name for node in graph.nodes}
    assert_gradients(graph, suture.passes.gradient(graph), {k: v.double() for k, v in kwargs.items()})


@pytest.mark.parametrize("holds", [True, False])
def test_a_branch_has_a_branch_for_a_gradient(holds: bool) -> None:
    graph = read("""\
graph g(%p: bool[], %x: f32[3], %z: f32[3]) {
  %h: f32[3] = sin(%x)
  %y: f32[3], %w: f32[3] = branch(%p, %h, %z) then=graph left(%a: f32[3], %b: f32[3]) {
      %c: f32[3] = mul(%a, %b)
      return %c, %a
    } otherwise=graph right(%a: f32[3], %b: f32[3]) {
      %c: f32[3] = exp(%a)
      return %c, %c as again
    }
  return %y, %w
}
""")
    x, z = torch.randn(2, 3, dtype=F64)
    made = suture.passes.gradient(graph)
    verify(made)
    assert_gradients(graph, made, {"p": torch.tensor(holds), "x": x, "z": z})
