"""Random networks of parallel and consecutive linear branches compute what they did, collapse where theory says so, or say why not."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_blocks import WIDE, Block, Pair, one_thread  # noqa: F401

import suture.passes
from suture.ir.graph import Graph
from suture.ir.semantics import evaluate
from suture.ir.types import TensorType


def require_equal(graph: Graph, block: Block, expected: torch.Tensor) -> None:
    torch.testing.assert_close(evaluate(graph, [block.x.tensor])[0], expected, rtol=1e-10, atol=1e-10)


def operators(graph: Graph) -> list[str]:
    return [node.operator.name for node in graph.nodes]


def odd(draw: st.DrawFn, most: int) -> int:
    return draw(st.sampled_from([size for size in (1, 3, 5) if size <= most]))


def branch(block: Block, x: Pair, out: int, kernel: int, stride: int, groups: int) -> Pair:
    """A branch that a convolution of `kernel` in `groups` can take in: it reads no more, and gives as many results."""
    draw, inputs = block.draw, x.tensor.shape[1]
    kinds = ["conv", "conv", "pointwise, conv", "padded conv, pointwise", "depthwise, pointwise", "nested"]
    kinds += ["pool"] * (inputs == out) + ["identity"] * (inputs == out and stride == 1)
    kind = draw(st.sampled_from(kinds))
    size = [odd(draw, kernel) for _ in range(block.rank)]
    own = draw(st.sampled_from([g for g in (groups, 2 * groups) if inputs % g == 0 and out % g == 0]))
    if kind == "identity":
        return block.dressed(x)
    if kind == "pool":
        return block.dressed(block.pool(x, size, stride))
    if kind == "nested":
        inner = [block.conv(x, out, size, stride=stride, groups=own) for _ in range(2)]
        return block.dressed(block.sum([block.dressed(each) for each in inner]))
    if kind == "pointwise, conv":  # what it pads is zero: no bias before
        first = block.conv(x, 2 * inputs, [1] * block.rank, groups=own, bias=False)
        return block.dressed(block.conv(first, out, size, stride=stride, groups=own))
    if kind == "padded conv, pointwise":
        padded = block.pad(x, [each // 2 for each in size])
        first = block.conv(padded, 2 * out, size, stride=stride, padding=[0] * block.rank, groups=own)
        return block.dressed(block.conv(block.norm(first), out, [1] * block.rank, groups=own))
    if kind == "depthwise, pointwise":
        first = block.norm(block.conv(x, inputs, size, stride=stride, groups=inputs))
        return block.dressed(block.conv(first, out, [1] * block.rank, groups=own))
    if kernel == 5 and draw(st.booleans()):
        return block.dressed(block.conv(x, out, [3] * block.rank, stride=stride, dilation=2, groups=own))
    return block.dressed(block.conv(x, out, size, stride=stride, groups=own, bias=draw(st.booleans())))


@settings(max_examples=60)
@given(st.data())
def test_branches_beside_a_convolution_that_covers_them_become_that_one_layer(data: st.DataObject) -> None:
    draw = data.draw
    rank, groups, stride = draw(st.integers(1, 3)), draw(st.sampled_from((1, 2))), draw(st.sampled_from((1, 2)))
    kernel, inputs = 3 if rank == 3 else draw(st.sampled_from((3, 5))), 4
    out = draw(st.sampled_from((4, 8)))
    block = Block(draw, inputs, [7, 6, 5][:rank])
    main = block.conv(block.x, out, [kernel] * rank, stride=stride, groups=groups, bias=draw(st.booleans()))
    count = draw(st.integers(1, 4))
    terms = [block.dressed(main), *(branch(block, block.x, out, kernel, stride, groups) for _ in range(count))]
    result = block.sum(draw(st.permutations(terms)))
    result = block.dressed(result)
    block.graph.set_outputs([result.value], ["y"])
    merged = suture.passes.reparam(block.graph)
    require_equal(merged, block, result.tensor)
    assert operators(merged) == ["conv"], merged.history[-1].notes
    assert merged.outputs[0].name == result.value.name
    again = suture.passes.reparam(merged)
    assert again.history[-1].outcome == "not applicable"


@settings(max_examples=100)
@given(st.data())
def test_any_network_of_linear_operators_computes_what_it_did_or_says_why_it_stays(data: st.DataObject) -> None:
    draw = data.draw
    rank = draw(st.integers(1, 2))
    block = Block(draw, 4, [6, 5][:rank])
    pool = [block.x]
    for _ in range(draw(st.integers(2, 9))):
        x = draw(st.sampled_from(pool[-3:]))
        kind = draw(st.sampled_from(("conv", "conv", "norm", "scale", "pool", "sum", "sum", "pad", "relu", "concat")))
        same = [pair for pair in pool if pair.tensor.shape == x.tensor.shape]
        small = min(x.tensor.shape[2:]) < 3
        if kind == "conv":
            groups = draw(st.sampled_from([g for g in (1, 2, 4) if x.tensor.shape[1] % g == 0]))
            size = [draw(st.integers(1, 3)) for _ in range(rank)]
            padding = [draw(st.integers(2 if small else 0, 2)) for _ in range(rank)]
            x = block.conv(
                x, 4, size, stride=draw(st.integers(1, 2)), padding=padding, dilation=draw(st.integers(1, 1 if small else 2)) , groups=groups,
                bias=draw(st.booleans()),
            ) if all(s + 2 * p >= 5 or k == 1 for s, p, k in zip(x.tensor.shape[2:], padding, size, strict=True)) else x  # fmt: skip
        elif kind == "norm":
            x = block.norm(x)
        elif kind == "scale":
            x = block.vector(x, draw(st.sampled_from(("mul", "add", "sub", "div"))))
        elif kind == "pool" and not small:
            x = block.pool(x, [3] * rank, draw(st.integers(1, 2)), count=draw(st.booleans()))
        elif kind == "sum":
            x = block.sum([x, draw(st.sampled_from(same))])
        elif kind == "pad":
            x = block.pad(x, [1] * rank, draw(st.sampled_from((0.0, 0.5))))
        elif kind == "concat":
            other = draw(st.sampled_from(same))
            node = block.graph.add("concat", [x.value, other.value], {"dim": 1}, path=block.path("concat"))
            x = Pair(node.output, torch.cat([x.tensor, other.tensor], 1))
        elif kind == "relu":
            x = block.relu(x)
        pool.append(x)
    block.graph.set_outputs([x.value], ["y"])
    merged = suture.passes.reparam(block.graph, merge=draw(st.sampled_from(("paying", "always"))))
    require_equal(merged, block, x.tensor)
    said = "\n".join(merged.history[-1].notes)
    for node in merged.nodes:
        reads = [value.producer for value in node.inputs if value is not None and value.producer is not None]
        if node.operator.name == "batch_norm":
            assert f"{node.path} (batch_norm) stays" in said
        if node.operator.name == "conv" and reads and reads[0].operator.name == "conv":
            assert f"{reads[0].path}, then {node.path}: " in said
        if (
            node.operator.name in ("add", "sub")
            and len(reads) == 2
            and all(each.operator.name == "conv" for each in reads)
        ):
            leaves = {each.inputs[0] for each in reads}
            alone = all(len(each.output.uses) == 1 for each in reads)
            assert len(leaves) > 1 or not alone or reads[0].path in said


TOKENS = ("linear", "linear", "low rank", "scale", "shift", "half", "sum", "identity")


@settings(max_examples=50)
@given(st.lists(st.sampled_from(TOKENS), min_size=1, max_size=6), st.integers(0, 2**20))
def test_linear_layers_on_tokens_collapse_to_one(steps: list[str], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    graph = Graph("tokens")
    x = torch.randn(2, 3, 6, dtype=WIDE, generator=generator)
    start = Pair(graph.add_input("x", TensorType(WIDE, (2, 3, 6))), x)

    def layer(pair: Pair, path: str, out: int, bias: bool) -> Pair:
        weight = torch.randn(out, pair.tensor.shape[-1], dtype=WIDE, generator=generator) / 3
        operands = [pair.value, graph.add_parameter(f"{path}.weight", weight)]
        shift = torch.randn(out, dtype=WIDE, generator=generator) if bias else None
        operands.append(graph.add_parameter(f"{path}.bias", shift) if shift is not None else None)
        return Pair(
            graph.add("linear", operands, path=path).output, torch.nn.functional.linear(pair.tensor, weight, shift)
        )

    current, total = layer(start, "first", 6, True), None
    for index, step in enumerate(steps):
        path = f"{step.replace(' ', '_')}{index}"
        numbers = torch.randn(6, dtype=WIDE, generator=generator)
        if step == "linear":
            current = layer(current, path, 6, bool(index % 2))
        elif step == "low rank":
            current = layer(layer(current, f"{path}.a", 2, False), f"{path}.b", 6, False)
        elif step == "scale":
            node = graph.add("mul", [current.value, graph.add_parameter(path, numbers)], path=path)
            current = Pair(node.output, current.tensor * numbers)
        elif step == "shift":
            node = graph.add("sub", [graph.add_parameter(path, numbers), current.value], path=path)
            current = Pair(node.output, numbers - current.tensor)
        elif step == "half":
            current = Pair(
                graph.add("mul", [current.value, None], {"scalar": 0.5}, path=path).output, current.tensor * 0.5
            )
        else:
            other = start if step == "identity" else layer(start, path, 6, True)
            total = current if total is None else total
            node = graph.add("add", [current.value, other.value], path=path)
            current = Pair(node.output, current.tensor + other.tensor)
    graph.set_outputs([current.value])
    merged = suture.passes.reparam(graph, merge="always")
    torch.testing.assert_close(evaluate(merged, [x])[0], current.tensor, rtol=1e-10, atol=1e-10)
    assert operators(merged) == ["linear"]
