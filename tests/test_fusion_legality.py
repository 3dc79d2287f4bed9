"""Where patterns must stay as they are, and which fused operators a target cannot have: a test beside every predicate."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import suture
from suture.backends.onnx.profile import find_profile
from suture.backends.onnx.rules.fused import UNWRITABLE, fused_where_possible
from suture.ir.graph import Graph, Node
from suture.ir.operators.fused import BODIES
from suture.ir.text import parse_graph

HEAD = "parameter @w: f32[4, 4]\n parameter @c: f32[4]\n parameter @g: f32[4]"


def graph(inputs: str, body: str) -> Graph:
    text = f"graph net({inputs}) {{\n{HEAD}\n{body}\n}}"
    return parse_graph(text, {"w": torch.randn(4, 4), "c": torch.randn(4), "g": torch.randn(4)})


def left(net: Graph, rule: str, *include: str) -> str:
    """Why a rule left its site alone."""
    fused = suture.passes.fuse(net, include=include or ("all",))
    assert not any(node.operator.name in BODIES for node in fused.nodes), str(fused)
    found = [note for note in fused.history[-1].notes if note.startswith(f"left: {rule} at")]
    assert len(found) == 1, fused.history[-1].notes
    return found[0]


X = "%x: f32[2, 3, 4]"
LINEAR = "%h: f32[2, 3, 4] = linear(%x, @w, @c)"


def test_an_inner_value_that_others_read_stays() -> None:
    net = graph(X, f"{LINEAR}\n%y: f32[2, 3, 4] = gelu(%h)\n%z: f32[2, 3, 4] = tanh(%h)\nreturn %y, %z")
    assert "%h is also read by %z (tanh)" in left(net, "bias and GELU")


def test_an_inner_value_that_is_an_output_stays() -> None:
    net = graph(X, f"{LINEAR}\n%y: f32[2, 3, 4] = gelu(%h)\nreturn %y, %h")
    assert "%h is also an output" in left(net, "bias and GELU")


def test_a_matrix_keeps_its_bias() -> None:
    net = graph("%x: f32[3, 4]", "%h: f32[3, 4] = linear(%x, @w, @c)\n%y: f32[3, 4] = gelu(%h)\nreturn %y")
    assert "is a matrix: its product adds the bias already" in left(net, "bias and GELU")


def test_a_layer_without_bias_has_none_to_move() -> None:
    net = graph(X, "%h: f32[2, 3, 4] = linear(%x, @w, _)\n%y: f32[2, 3, 4] = gelu(%h)\nreturn %y")
    assert "c is absent" in left(net, "bias and GELU")


def test_a_skip_that_is_repeated_is_none() -> None:
    net = graph(f"{X}, %s: f32[1, 3, 4]", f"{LINEAR}\n%y: f32[2, 3, 4] = add(%h, %s)\nreturn %y")
    assert "skip[" in left(net, "bias and residual")


def test_a_norm_over_two_dimensions_is_another() -> None:
    body = "%s: f32[2, 3, 4] = add(%x, %z)\n%y: f32[2, 3, 4] = layer_norm(%s, _, _) rank=2\nreturn %y"
    net = graph(f"{X}, %z: f32[2, 3, 4]", body)
    fused = suture.passes.fuse(net, include=("all",))
    assert [node.operator.name for node in fused.nodes] == ["add", "layer_norm"]


def test_a_gain_computed_from_the_sum_is_a_circle() -> None:
    body = """%s: f32[2, 3, 4] = add(%x, %z)
    %m: f32[4] = mean(%s) dims=(0, 1)
    %y: f32[2, 3, 4] = rms_norm(%s, %m)
    return %y"""
    assert "an operand is computed from %s (add)" in left(graph(f"{X}, %z: f32[2, 3, 4]", body), "skip_rms_norm")


ATTENTION = """
%q1: f32[2, 3, 2, 2] = reshape(%q)
%q2: f32[2, 2, 3, 2] = permute(%q1) dims=(0, 2, 1, 3)
%k1: f32[2, 3, 2, 2] = reshape(%k)
%k2: f32[2, 2, 3, 2] = permute(%k1) dims=(0, 2, {order}, 3)
%v1: f32[2, 3, 2, 2] = reshape(%v)
%v2: f32[2, 2, 3, 2] = permute(%v1) dims=(0, 2, 1, 3)
%a: f32[2, 2, 3, 2] = attention(%q2, %k2, %v2) scale=0.5
%p: f32[2, 3, 2, 2] = permute(%a) dims=(0, 2, 1, 3)
%y: f32[2, 3, 4] = reshape(%p)
return %y{more}
"""
QKV = "%q: f32[2, 3, 4], %k: f32[2, 3, 4], %v: f32[2, 3, 4]"


def test_heads_that_others_read_stay() -> None:
    net = graph(QKV, ATTENTION.format(order=1, more=", %a"))
    assert "%a is also an output" in left(net, "multi_head_attention")


def test_projections_of_several_values_are_not_packed() -> None:
    lines = [f"%{name}: f32[2, 3, 4] = linear(%{name}0, @w, @c)" for name in "qkv"]
    net = graph(
        "%q0: f32[2, 3, 4], %k0: f32[2, 3, 4], %v0: f32[2, 3, 4]",
        "\n".join(lines) + ATTENTION.format(order=1, more=""),
    )
    fused = suture.passes.fuse(net)
    assert [node.operator.name for node in fused.nodes][-1] == "multi_head_attention"
    assert any("projected_attention" in note and "x would be" in note for note in fused.history[-1].notes)


def node(operator: str, operands: str, attributes: str = "", parameters: tuple[str, ...] = ()) -> Node:
    """One fused node that reads inputs, or parameters where they are named so."""
    types = operands.split("; ")
    inputs = [f"%x{k}: {type_}" for k, type_ in enumerate(types) if type_ != "_" and f"x{k}" not in parameters]
    reads = ", ".join("_" if t == "_" else f"{'@' if f'x{k}' in parameters else '%'}x{k}" for k, t in enumerate(types))
    lines = [f"parameter @{name}: {types[int(name[1:])]}" for name in parameters]
    result = types[0] if "skip" not in operator else f"{types[0]}, %sum: {types[0]}"
    text = (
        f"graph net({', '.join(inputs)}) {{\n"
        + "\n".join(lines)
        + f"\n%y: {result} = {operator}({reads}) {attributes}\nreturn %y\n}}"
    )
    tensors = {name: torch.arange(48.0)[: parse_size(types[int(name[1:])])] for name in parameters}
    shaped = {name: tensor.reshape(shape_of(types[int(name[1:])])) for name, tensor in tensors.items()}
    return parse_graph(text, shaped).nodes[-1]


def shape_of(text: str) -> list[int]:
    return [int(part) for part in text.partition("[")[2].rstrip("]").split(",")]


def parse_size(text: str) -> int:
    count = 1
    for size in shape_of(text):
        count *= size
    return count


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (lambda: node("bias_gelu", "f64[2, 3, 4]; f64[4]"), "for 32 bits"),
        (lambda: node("quick_gelu", "f16[2, 3]"), "for 32 bits"),
        (lambda: node("bias_residual", "f16[2, 3, 4]; f16[4]; f16[2, 3, 4]"), "Sum is for 32 and 64 bits"),
        (lambda: node("skip_layer_norm", "f32[2, 3, 5, 4]; f32[2, 3, 5, 4]; f32[4]"), "it takes rows"),
        (lambda: node("skip_rms_norm", "f32[2, 3, 4]; f32[2, 3, 4]; _"), "it needs a gain"),
        (
            lambda: node("multi_head_attention", "f32[2, 3, 4]; f32[2, 5, 4]; f32[2, 5, 4]", "heads=2 scale=0.5 causal=true"),
            "rows and columns of its causal mask differ",
        ),
        (
            lambda: node("multi_head_attention", "f32[2, 3, 4]; f32[2, 3, 4]; f32[2, 3, 4]; f32[3, 3]", "heads=2 scale=0.5 causal=true"),
            "it is causal and masked",
        ),
        (
            lambda: node("multi_head_attention", "f32[2, 3, 4]; f32[2, 3, 4]; f32[2, 3, 4]; bool[2, 2, 3, 3]", "heads=2 scale=0.5"),
            "rows may see nothing in some heads only",
        ),
        (lambda: node("grouped_attention", "f32[2, 3, 4]; f32[2, 3, 2]; f32[2, 3, 2]", "key_heads=1 group=2 scale=0.5"), "opset 23"),
        (
            lambda: node("projected_attention", "f32[2, 3, 4]; f32[4, 4]; f32[4, 4]; f32[4, 4]", "heads=2 scale=0.5"),
            "its weights are computed",
        ),
        (
            lambda: node("packed_attention", "f32[2, 3, 4]; f32[12, 4]; f32[12]", "heads=2 scale=0.5", ("x1",)),
            "its biases are computed",
        ),
        (lambda: node("rotary", "f32[2, 3, 4]; f32[2, 1, 3, 2]; f32[2, 1, 3, 2]", "heads=2"), "the angles differ within a batch"),
        (
            lambda: node("rotary", "f32[2, 3, 4]; f32[1, 1, 3, 2]; f32[1, 1, 3, 2]", "heads=2", ("x1", "x2")),
            "the halves of its tables may differ",
        ),
    ],
)  # fmt: skip
def test_what_onnx_runtime_cannot_have_is_written_out(made: object, reason: str, tmp_path: Path) -> None:
    found: Node = made()  # type: ignore[operator]
    profile = find_profile("onnxruntime")
    said = UNWRITABLE[found.operator.name](found, 21, profile)
    assert said is not None
    assert reason in said
    opened = fused_where_possible(found.graph, 21, profile)
    assert not any(inner.operator.name == found.operator.name for inner in opened.nodes)
    suture.export_onnx(found.graph, tmp_path / "net.onnx", profile="onnxruntime")


def test_every_fused_operator_says_where_it_cannot_be_written() -> None:
    assert set(UNWRITABLE) == set(BODIES)


def test_portable_files_have_no_contributed_operators(tmp_path: Path) -> None:
    net = node("bias_gelu", "f32[2, 3, 4]; f32[4]").graph
    import onnx

    path = suture.export_onnx(net, tmp_path / "net.onnx", opset=20)
    assert [made.op_type for made in onnx.load(str(path)).graph.node] == ["Add", "Gelu"]
    with pytest.raises(suture.SutureError, match=r"S506.*fused=contrib.*portable.*onnxruntime"):
        suture.export_onnx(net, tmp_path / "other.onnx", choices={"fused": "contrib"})
    assert not (tmp_path / "other.onnx").exists()


def test_rows_that_see_nothing_are_zeros(tmp_path: Path) -> None:
    """As torch has it, where ONNX Runtime's kernel would average everything."""
    net = node(
        "multi_head_attention", "f32[2, 3, 4]; f32[2, 3, 4]; f32[2, 3, 4]; bool[2, 1, 1, 3]", "heads=2 scale=0.5"
    ).graph
    inputs = [*torch.randn(3, 2, 3, 4), torch.tensor([[True, False, True], [False] * 3]).reshape(2, 1, 1, 3)]
    q, k, v = (x.unflatten(-1, (2, 2)).transpose(1, 2) for x in inputs[:3])
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, inputs[3], scale=0.5).transpose(1, 2).flatten(2)
    assert not wanted[1].any()
    from suture.backends.onnxruntime import OnnxModel

    path = suture.export_onnx(net, tmp_path / "net.onnx", profile="onnxruntime")
    torch.testing.assert_close(OnnxModel(path).run(inputs)[0], wanted)
    torch.testing.assert_close(suture.evaluate(net, inputs)[0], wanted)


def test_a_bias_that_is_absent_is_written_as_zeros(tmp_path: Path) -> None:
    """ONNX Runtime's kernel for a CPU crashes without one."""
    net = node("packed_attention", "f32[2, 3, 4]; f32[12, 4]", "heads=2 scale=0.01", ("x1",)).graph
    from suture.backends.onnxruntime import OnnxModel

    path = suture.export_onnx(net, tmp_path / "net.onnx", profile="onnxruntime")
    x = torch.randn(2, 3, 4)
    torch.testing.assert_close(OnnxModel(path).run([x])[0], suture.evaluate(net, [x])[0], rtol=1e-4, atol=1e-4)


def test_a_bias_that_is_stored_as_integers_stays_with_its_product() -> None:
    module = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
    torch.manual_seed(0)
    x = torch.randn(4, 5, 8)
    graph = suture.passes.quantise(suture.trace(module, (x,)), data={"input": x})
    fused = suture.passes.fuse(graph)
    assert "bias_gelu" not in fused.stats().operators
    assert any("is stored as integers: the product of integers adds it" in note for note in fused.history[-1].notes)
