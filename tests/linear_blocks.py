"""Random blocks of linear operators: each step adds nodes to a graph and computes in torch, on its own, what they mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import strategies as st

from suture.ir.graph import Graph, Parameter, Value
from suture.ir.types import TensorType

WIDE = torch.float64


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Blocks as small as these take longer on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Pair(NamedTuple):
    """A value of the graph, and what torch computed for it."""

    value: Value
    tensor: torch.Tensor


class Block:
    """A graph of images (or signals, or volumes) that grows step by step beside its oracle."""

    def __init__(self, draw: st.DrawFn, channels: int, space: Sequence[int], dtype: torch.dtype = WIDE) -> None:
        self.draw = draw
        self.generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
        self.graph = Graph("block")
        self.rank = len(space)
        x = torch.randn(2, channels, *space, dtype=WIDE, generator=self.generator).to(dtype)
        self.x = Pair(self.graph.add_input("x", TensorType(dtype, tuple(x.shape))), x)
        self.steps = 0

    def path(self, kind: str) -> str:
        self.steps += 1
        return f"{kind}{self.steps}"

    def numbers(self, path: str, kind: str, *shape: int, low: float = -1.0, high: float = 1.0) -> Parameter:
        data = torch.rand(*shape, dtype=WIDE, generator=self.generator) * (high - low) + low
        return self.graph.add_parameter(f"{path}.{kind}", data.to(self.x.value.dtype))

    def conv(
        self, x: Pair, out: int, kernel: Sequence[int], *, stride: int = 1, padding: Sequence[int] | None = None, dilation: int = 1,
        groups: int = 1, bias: bool = True,
    ) -> Pair:  # fmt: skip
        path = self.path("conv")
        inputs = x.value.shape[1]
        assert isinstance(inputs, int)
        fan = math.sqrt(inputs // groups * math.prod(kernel))
        weight = self.numbers(path, "weight", out, inputs // groups, *kernel, low=-1 / fan, high=1 / fan)
        shift = self.numbers(path, "bias", out) if bias else None
        pads = tuple(padding) if padding is not None else tuple(dilation * (size - 1) // 2 for size in kernel)
        attributes = {
            "stride": (stride,) * self.rank,
            "padding": pads,
            "dilation": (dilation,) * self.rank,
            "groups": groups,
        }
        node = self.graph.add("conv", [x.value, weight, shift], attributes, path=path, name=path)
        function = (F.conv1d, F.conv2d, F.conv3d)[self.rank - 1]
        tensor = function(x.tensor, weight.data, None if shift is None else shift.data, stride, pads, dilation, groups)
        return Pair(node.output, tensor)

    def norm(self, x: Pair) -> Pair:
        path, channels = self.path("norm"), x.tensor.shape[1]
        gain, bias, mean = (self.numbers(path, kind, channels) for kind in ("weight", "bias", "running_mean"))
        var = self.numbers(path, "running_var", channels, low=0.5, high=2.0)
        node = self.graph.add("batch_norm", [x.value, gain, bias, mean, var], {"eps": 1e-3}, path=path, name=path)
        return Pair(node.output, F.batch_norm(x.tensor, mean.data, var.data, gain.data, bias.data, eps=1e-3))

    def vector(self, x: Pair, operator: str) -> Pair:
        path = self.path(operator)
        numbers = self.numbers(path, "gamma", x.tensor.shape[1], *[1] * self.rank, low=0.5, high=1.5)
        node = self.graph.add(operator, [x.value, numbers], path=path, name=path)
        return Pair(node.output, getattr(torch, operator)(x.tensor, numbers.data))

    def scalar(self, x: Pair, operator: str, number: float) -> Pair:
        path = self.path(operator)
        node = self.graph.add(operator, [x.value, None], {"scalar": number}, path=path, name=path)
        return Pair(node.output, getattr(torch, operator)(x.tensor, number))

    def negative(self, x: Pair) -> Pair:
        return Pair(self.graph.add("neg", [x.value], path=self.path("neg")).output, -x.tensor)

    def pool(self, x: Pair, kernel: Sequence[int], stride: int = 1, *, count: bool = True) -> Pair:
        path, padding = self.path("pool"), tuple(size // 2 for size in kernel)
        attributes = {
            "kernel": tuple(kernel),
            "stride": (stride,) * self.rank,
            "padding": padding,
            "count_padding": count,
        }
        node = self.graph.add("avg_pool", [x.value], attributes, path=path, name=path)
        function = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[self.rank - 1]
        return Pair(node.output, function(x.tensor, tuple(kernel), stride, padding, False, count))

    def pad(self, x: Pair, amount: Sequence[int], value: float = 0.0) -> Pair:
        pads = (0, 0, *amount, 0, 0, *amount)
        node = self.graph.add("pad", [x.value], {"pads": pads, "value": value}, path=self.path("pad"))
        flat = [size for size in reversed(amount) for _ in range(2)]
        return Pair(node.output, F.pad(x.tensor, flat, value=value))

    def relu(self, x: Pair) -> Pair:
        return Pair(self.graph.add("relu", [x.value], path=self.path("relu")).output, torch.relu(x.tensor))

    def sum(self, terms: Sequence[Pair]) -> Pair:
        total = terms[0]
        for term in terms[1:]:
            operator = self.draw(st.sampled_from(("add", "sub")))
            path = self.path(operator)
            node = self.graph.add(operator, [total.value, term.value], path=path, name=path)
            total = Pair(node.output, getattr(torch, operator)(total.tensor, term.tensor))
        return total

    def dressed(self, x: Pair) -> Pair:
        """A few steps that map each channel by itself."""
        steps: dict[str, Callable[[Pair], Pair]] = {
            "norm": self.norm, "scale": lambda p: self.vector(p, "mul"), "shift": lambda p: self.vector(p, "sub"),
            "half": lambda p: self.scalar(p, "div", 2.0), "negative": self.negative, "offset": lambda p: self.scalar(p, "add", 0.25),
        }  # fmt: skip
        for name in self.draw(st.lists(st.sampled_from(sorted(steps)), max_size=2)):
            x = steps[name](x)
        return x
