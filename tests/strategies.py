"""What hypothesis draws: random small graphs over the common operators, with weights and inputs to run them on.

`graphs()` draws a `Graph` of images `[batch, c, h, w]` or features `[batch, l, c]`; `run_inputs(graph, ...)` makes inputs that fit it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from hypothesis import strategies as st

from suture.ir.graph import Graph, Parameter, Value
from suture.ir.sizes import Dim, evaluate_size, symbol
from suture.ir.types import TensorType

Step = Callable[["Builder", Value], "Value | None"]  # adds nodes that read the value; None where it does not apply

SMOOTH = ("gelu", "silu", "sigmoid", "tanh", "softplus", "neg", "mish")
KINKED = ("relu", "leaky_relu", "hardswish", "relu6", "abs", "hardsigmoid", "elu")


class Builder:
    """A graph that grows step by step, with what the steps need: draws, fresh weights, values to join."""

    def __init__(self, draw: st.DrawFn, graph: Graph, seed: int, dtype: torch.dtype) -> None:
        self.draw = draw
        self.graph = graph
        self.dtype = dtype
        self.pool: list[Value] = list(graph.inputs)
        self.generator = torch.Generator().manual_seed(seed)

    def weight(self, *shape: int, scale: float = 0.4, offset: float = 0.0, role: str = "parameter") -> Parameter:
        name = f"p{len(self.graph.parameters)}"
        data = torch.randn(shape, generator=self.generator, dtype=torch.float64) * scale + offset
        return self.graph.add_parameter(name, data.to(self.dtype), role)

    def positive(self, *shape: int) -> Parameter:
        name = f"p{len(self.graph.parameters)}"
        data = torch.rand(shape, generator=self.generator, dtype=torch.float64) + 0.5
        return self.graph.add_parameter(name, data.to(self.dtype), "buffer")

    def one(
        self,
        operator: str,
        inputs: Sequence[Value | None],
        *,
        shapes: Sequence[Sequence[Dim]] | None = None,
        **attributes: object,
    ) -> Value:
        path = self.draw(st.sampled_from(("", "stem", "layers.0.mlp")))
        return self.graph.add(operator, inputs, attributes, shapes=shapes, path=path).output  # type: ignore[arg-type]

    def fixed_dim(self, value: Value) -> int | None:
        """A dimension of a known size greater than 1."""
        dims = [k for k, size in enumerate(value.shape) if isinstance(size, int) and size > 1]
        return self.draw(st.sampled_from(dims)) if dims else None


def fixed(size: Dim) -> int:
    assert isinstance(size, int)
    return size


def unary(b: Builder, x: Value) -> Value:
    return b.one(b.draw(st.sampled_from(SMOOTH + KINKED)), [x])


def scalar(b: Builder, x: Value) -> Value:
    operator = b.draw(st.sampled_from(("add", "sub", "mul", "maximum", "minimum")))
    number = b.draw(st.sampled_from((0.5, -1.25, 2.0, 3)))
    operands = b.draw(st.sampled_from(((x, None), (None, x))))
    return b.one(operator, operands, scalar=number)


def binary(b: Builder, x: Value) -> Value:
    others = [value for value in b.pool if value.shape == x.shape]
    return b.one(b.draw(st.sampled_from(("add", "sub", "mul", "maximum"))), [x, b.draw(st.sampled_from(others))])


def broadcast(b: Builder, x: Value) -> Value:
    shape = [size if isinstance(size, int) and b.draw(st.booleans()) else 1 for size in x.shape]
    drop = b.draw(st.integers(0, len(shape)))
    return b.one(b.draw(st.sampled_from(("add", "mul"))), [x, b.weight(*shape[drop:])])


def linear(b: Builder, x: Value) -> Value | None:
    if x.rank < 2 or not isinstance(x.shape[-1], int):
        return None
    out = b.draw(st.integers(1, 6))
    return b.one("linear", [x, b.weight(out, x.shape[-1]), b.weight(out) if b.draw(st.booleans()) else None])


def conv(b: Builder, x: Value) -> Value | None:
    if x.rank not in (3, 4) or not all(isinstance(size, int) for size in x.shape[1:]):
        return None
    channels, *space = map(fixed, x.shape[1:])
    groups = b.draw(st.sampled_from([g for g in (1, 2, channels) if channels % g == 0]))
    out = groups * b.draw(st.integers(1, 4))
    kernel, stride, dilation = (b.draw(st.integers(1, 3)), b.draw(st.integers(1, 2)), b.draw(st.integers(1, 2)))
    padding = b.draw(st.integers(0, 2))
    if any(size + 2 * padding < dilation * (kernel - 1) + 1 for size in space):
        return None
    rank = len(space)
    weight, bias = b.weight(out, channels // groups, *[kernel] * rank), b.weight(out) if b.draw(st.booleans()) else None
    every = {"stride": (stride,) * rank, "padding": (padding,) * rank, "dilation": (dilation,) * rank, "groups": groups}
    return b.one("conv", [x, weight, bias], **every)


def norm(b: Builder, x: Value) -> Value | None:
    kind = b.draw(st.sampled_from(("batch_norm", "layer_norm", "rms_norm", "group_norm")))
    if kind in ("layer_norm", "rms_norm"):
        if not x.rank or not isinstance(x.shape[-1], int):
            return None
        gain, bias = b.weight(x.shape[-1], offset=1.0), b.weight(x.shape[-1])
        return b.one(kind, [x, gain, bias] if kind == "layer_norm" else [x, gain])
    if x.rank not in (2, 3, 4) or not isinstance(x.shape[1], int) or (kind == "group_norm" and x.rank < 3):
        return None
    channels = x.shape[1]
    gain, bias = b.weight(channels, offset=1.0), b.weight(channels)
    if kind == "group_norm":
        groups = b.draw(st.sampled_from([g for g in (1, 2, channels) if channels % g == 0]))
        return b.one(kind, [x, gain, bias], groups=groups)
    return b.one(kind, [x, gain, bias, b.weight(channels, role="buffer"), b.positive(channels)])


def pool(b: Builder, x: Value) -> Value | None:
    if x.rank != 4 or not all(isinstance(size, int) and size >= 2 for size in x.shape[2:]):
        return None
    kernel, stride, ceil = b.draw(st.integers(2, 3)), b.draw(st.integers(1, 2)), b.draw(st.booleans())
    if any(fixed(size) + 2 < kernel for size in x.shape[2:]):
        return None
    common = {"kernel": (kernel,) * 2, "stride": (stride,) * 2, "padding": (1, 1), "ceil": ceil}
    if b.draw(st.booleans()):
        return b.one("max_pool", [x], **common, dilation=(1, 1))
    return b.one("avg_pool", [x], **common, count_padding=b.draw(st.booleans()))


def reshape(b: Builder, x: Value) -> Value | None:
    """Merge two neighbours, or split one dimension in two."""
    shape = list(x.shape)
    if x.rank >= 2 and b.draw(st.booleans()):
        k = b.draw(st.integers(0, x.rank - 2))
        shape[k : k + 2] = [shape[k] * shape[k + 1]]
        return b.one("reshape", [x], shapes=[shape])
    k_fixed = b.fixed_dim(x)
    if k_fixed is None or x.rank > 4:
        return None
    size = fixed(shape[k_fixed])
    factor = b.draw(st.sampled_from([f for f in range(1, size + 1) if size % f == 0]))
    shape[k_fixed : k_fixed + 1] = [factor, size // factor]
    return b.one("reshape", [x], shapes=[shape])


def permute(b: Builder, x: Value) -> Value | None:
    if x.rank < 2:
        return None
    return b.one("permute", [x], dims=tuple(b.draw(st.permutations(range(x.rank)))))


def concat(b: Builder, x: Value) -> Value | None:
    if not x.rank:
        return None
    dim = b.draw(st.integers(0, x.rank - 1))
    fit = [v for v in b.pool if v.rank == x.rank and all(v.shape[k] == x.shape[k] for k in range(x.rank) if k != dim)]
    parts = [x, *b.draw(st.lists(st.sampled_from(fit), min_size=1, max_size=2))]
    return b.one("concat", parts, dim=dim)


def split(b: Builder, x: Value) -> Value | None:
    dim = b.fixed_dim(x)
    if dim is None:
        return None
    size = fixed(x.shape[dim])
    first = b.draw(st.integers(1, size - 1))
    shapes = [[part if k == dim else d for k, d in enumerate(x.shape)] for part in (first, size - first)]
    node = b.graph.add("split", [x], {"dim": dim}, shapes=shapes)
    b.pool += node.outputs
    return b.draw(st.sampled_from(node.outputs))


def slice_(b: Builder, x: Value) -> Value | None:
    dim = b.fixed_dim(x)
    if dim is None:
        return None
    size, step = fixed(x.shape[dim]), b.draw(st.integers(1, 2))
    start = b.draw(st.integers(0, size - 1))
    length = b.draw(st.integers(1, (size - start - 1) // step + 1))
    shape = [length if k == dim else d for k, d in enumerate(x.shape)]
    return b.one("slice", [x], shapes=[shape], dim=dim, start=start, step=step)


def reduce(b: Builder, x: Value) -> Value | None:
    dim = b.fixed_dim(x)
    if dim is None or x.rank < 2:
        return None
    return b.one(b.draw(st.sampled_from(("mean", "sum", "amax"))), [x], dims=(dim,), keepdim=b.draw(st.booleans()))


def softmax(b: Builder, x: Value) -> Value | None:
    dim = b.fixed_dim(x)
    return None if dim is None else b.one("softmax", [x], dim=dim)


def pad(b: Builder, x: Value) -> Value | None:
    dim = b.fixed_dim(x)
    if dim is None:
        return None
    before, after = b.draw(st.integers(0, 2)), b.draw(st.integers(0, 2))
    pads = [0] * (2 * x.rank)
    pads[dim], pads[x.rank + dim] = before, after
    return b.one("pad", [x], pads=tuple(pads), mode="constant", value=b.draw(st.sampled_from((0.0, 0.5))))


def scores(b: Builder, x: Value) -> Value | None:
    """x x^T, softmax, times x: attention written out."""
    if x.rank != 3 or not isinstance(x.shape[1], int):
        return None
    turned = b.one("permute", [x], dims=(0, 2, 1))
    weights = b.one("softmax", [b.one("matmul", [x, turned])], dim=-1)
    return b.one("matmul", [weights, x])


STEPS: dict[str, Step] = {
    "unary": unary, "scalar": scalar, "binary": binary, "broadcast": broadcast, "linear": linear, "conv": conv, "norm": norm, "pool": pool,
    "reshape": reshape, "permute": permute, "concat": concat, "split": split, "slice": slice_, "reduce": reduce, "softmax": softmax, "pad": pad,
    "scores": scores,
}  # fmt: skip


@st.composite
def graphs(
    draw: st.DrawFn,
    *,
    steps: Sequence[str] = tuple(STEPS),
    max_steps: int = 10,
    dtype: torch.dtype = torch.float32,
    symbolic: bool = True,
) -> Graph:
    """A random graph whose nodes all reach an output.

    :param steps: which steps to draw from (keys of STEPS)
    :param symbolic: whether the batch may be a symbol; else it is 2
    """
    graph = Graph("random")
    batch: Dim = symbol("batch") if symbolic and draw(st.booleans()) else 2
    tail = draw(st.sampled_from(((4, 6, 6), (6, 5, 7), (3, 8), (5, 4), (6,))))
    graph.add_input("x", TensorType(dtype, (batch, *tail)))
    if not isinstance(batch, int):
        graph.hints = {"batch": 2}
    if draw(st.booleans()):
        graph.add_input("z", TensorType(dtype, (batch, *tail)))
    builder = Builder(draw, graph, draw(st.integers(0, 2**16)), dtype)
    for _ in range(draw(st.integers(max_steps // 2, max_steps))):
        # the last value is drawn most often, so that graphs get deep
        source = draw(st.sampled_from((*builder.pool[:-1], *builder.pool[-1:] * (2 * len(builder.pool)))))
        made = STEPS[draw(st.sampled_from(steps))](builder, source)
        if made is not None and small(made):
            builder.pool.append(made)
    results = [value for value in builder.pool if value.producer is not None] or [
        graph.add("relu", [graph.inputs[0]]).output
    ]
    chosen = [results[-1]] + ([results[0]] if draw(st.booleans()) and len(results) > 1 else [])
    graph.set_outputs(list(dict.fromkeys(chosen)))
    graph.remove_dead()
    for parameter in [p for p in graph.parameters.values() if not p.uses]:
        graph.remove_parameter(parameter)
    return graph


def small(value: Value) -> bool:
    """Whether the value is cheap to run and to hold at a batch of 5."""
    return value.rank <= 5 and evaluate_size(value.type.elements, {"batch": 5}) <= 20_000


def run_inputs(graph: Graph, seed: int = 0, **sizes: int) -> list[torch.Tensor]:
    """Random inputs that fit a graph; sizes default to its hints, and integers lie in 0 to 3."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for value in graph.inputs:
        shape = [evaluate_size(dim, {**graph.hints, **sizes}) for dim in value.shape]
        if value.dtype.is_floating_point:
            made.append(torch.randn(shape, generator=generator, dtype=torch.float64).to(value.dtype))
        else:
            made.append(
                torch.randint(0, 2 if value.dtype == torch.bool else 4, shape, generator=generator).to(value.dtype)
            )
    return made


@st.composite
def prunable_graphs(draw: st.DrawFn, *, max_steps: int = 8) -> Graph:
    """A random graph between a weight that makes the channels and one that reads everything, so that its axes may be cut."""
    graph = Graph("prunable")
    image = draw(st.booleans())
    graph.add_input("x", TensorType(torch.float32, (2, 3, 4, 4) if image else (2, 4, 3)))
    builder = Builder(draw, graph, draw(st.integers(0, 2**16)), torch.float32)
    for _ in range(draw(st.integers(1, 2))):
        width = draw(st.sampled_from((4, 6, 8, 12)))
        x = graph.inputs[0]
        if image:
            one = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1)}
            stem = graph.add(
                "conv", [x, builder.weight(width, 3, 1, 1), builder.weight(width)], one, path=f"stem{len(graph)}"
            )
        else:
            stem = graph.add("linear", [x, builder.weight(width, 3), builder.weight(width)], path=f"stem{len(graph)}")
        builder.pool.append(stem.output)
    builder.pool.pop(0)  # the input itself would only pin what it meets
    for _ in range(draw(st.integers(1, max_steps))):
        source = draw(st.sampled_from((*builder.pool[:-1], *builder.pool[-1:] * (2 * len(builder.pool)))))
        made = STEPS[draw(st.sampled_from(tuple(STEPS)))](builder, source)
        if made is not None and small(made):
            builder.pool.append(made)
    last = builder.pool[-1]
    features = evaluate_size(last.type.elements, {}) // fixed(last.shape[0]) if last.rank else 1
    flat = graph.add("reshape", [last], shapes=[(last.shape[0], features)] if last.rank else [(1, 1)])
    head = graph.add("linear", [flat.output, builder.weight(3, features), None], path="head")
    graph.set_outputs([head.output])
    graph.remove_dead()
    for parameter in [p for p in graph.parameters.values() if not p.uses]:
        graph.remove_parameter(parameter)
    return graph
