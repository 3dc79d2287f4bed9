"""`trace`: every architecture of the zoo, every way to write things down, and every way to get it wrong."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch.utils._pytree as pytree
import zoo
from torch import nn

from suture.frontends.exported import Translator
from suture.frontends.torch_export import trace
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph
from suture.ir.semantics import evaluate
from suture.ir.types import TensorType


def tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def run(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[torch.Tensor]:
    """The module's own results, without the fused inference path of attention layers, which rounds differently."""
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            return tensors(module(*args, **kwargs))
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def assert_same(
    graph: Graph,
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None = None,
    *,
    tolerance: float = 0.0,
) -> None:
    expected = run(module, args, kwargs or {})
    with torch.no_grad():
        got = evaluate(graph, tensors((args, kwargs or {})))
    assert len(got) == len(expected)
    for ours, theirs in zip(got, expected, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance, equal_nan=True)


def operators(graph: Graph) -> Counter[str]:
    return Counter(node.operator.name for node in graph.nodes)


@pytest.fixture
def held_types(monkeypatch: pytest.MonkeyPatch) -> list[tuple[TensorType, TensorType]]:
    """Every (inferred, exported) pair of types while tracing."""
    pairs: list[tuple[TensorType, TensorType]] = []
    reconcile = Translator._reconcile

    def record(self: Translator, value: Any, example: torch.Tensor) -> Any:
        if value is not None:
            pairs.append((value.type, TensorType(example.dtype, self.sizes.shape(example))))
        return reconcile(self, value, example)

    monkeypatch.setattr(Translator, "_reconcile", record)
    return pairs


@pytest.mark.parametrize("name", zoo.ENTRIES)
def test_zoo_traces_and_computes_the_same_bits(name: str, held_types: list[tuple[TensorType, TensorType]]) -> None:
    entry = zoo.ENTRIES[name]
    module = zoo.randomise(entry.module())
    args, kwargs = entry.args()
    graph = trace(module, args, kwargs, dynamic=entry.dynamic)
    assert len(held_types) > 5
    assert [pair for pair in held_types if pair[0] != pair[1]] == []
    assert operators(graph)["opaque"] == 0
    assert_same(graph, module, args, kwargs)
    args, kwargs = entry.args(batch=3, sequence=17)
    assert_same(graph, module, args, kwargs)
    assert set(graph.symbols()) == {label for spec in entry.dynamic.values() for label in spec.values()}
    own = dict(module.named_parameters()) | dict(module.named_buffers())
    for tensor_name, tensor in own.items():
        assert graph.parameters[tensor_name].data is tensor


class Apply(nn.Module):
    """A module that is one function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(x)


def _write_part(x: torch.Tensor) -> torch.Tensor:
    y = x * 2
    y[:, 1:3] = 0.5
    y[:, 0] = x[:, 1]
    return y


def _write_through_view(x: torch.Tensor) -> torch.Tensor:
    y = x * 2
    y.view(-1).add_(1)
    return y + x


def _read_a_view_after_a_write(x: torch.Tensor) -> torch.Tensor:
    y = x + 1
    first = y[:, :2]
    y.mul_(3)
    return first + y[:, 2:4]


def _in_place_chain(x: torch.Tensor) -> torch.Tensor:
    y = x + 1
    y.relu_()
    y += x
    z = y.clone()
    z.clamp_(min=0.1).mul_(2)
    return y + z


IN_PLACE = {f.__name__: f for f in (_write_part, _write_through_view, _read_a_view_after_a_write, _in_place_chain)}


@pytest.mark.parametrize("name", IN_PLACE)
def test_in_place_operators_become_functional(name: str) -> None:
    module = Apply(IN_PLACE[name])
    x = torch.randn(4, 6)
    graph = trace(module, (x.clone(),), dynamic={"x": {0: "batch"}})
    assert operators(graph)["opaque"] == 0
    for batch in (4, 7):
        assert_same(graph, module, (torch.randn(batch, 6),))


# One line an operator: what it is called in the graph, and a function of x: f32[batch, 6, 8].
FUNCTIONS: dict[str, Callable[[torch.Tensor], Any]] = {
    "reshape": lambda x: x.flatten(1).unflatten(1, (3, 16)).unsqueeze(2).squeeze(2).view_as(x.reshape(-1, 3, 16)) * 1.5,
    "permute": lambda x: x.mT.transpose(0, 1).movedim(0, -1).permute(2, 1, 0),
    "expand": lambda x: x[:, :1].expand(-1, 4, -1),
    "split": lambda x: [*x.chunk(4, 1), *x.split([1, 5], 1), *x.unbind(2), *x.tensor_split(3, dim=1)],
    "concat": lambda x: [torch.cat([x, x + 1], -1), torch.stack([x, x - 1], 1), torch.hstack([x, x]), torch.vstack([x[0], x[1]])],
    "slice": lambda x: [x[:, 1:-1], x[..., ::2], x.narrow(1, 2, 3), x[:, -2:]],
    "select": lambda x: [x[:, 0], x[..., -1]],
    "repeat": lambda x: [x.repeat(1, 2, 1), x.tile(2)],
    "repeat_interleave": lambda x: x.repeat_interleave(3, dim=1),
    "roll": lambda x: [x.roll(2, 1), torch.roll(x, (1, -1), (1, 2))],
    "flip": lambda x: x.flip(1, 2),
    "triangle": lambda x: x.tril() + x.triu(1),
    "pad": lambda x: [F.pad(x, (1, 2)), F.pad(x, (1, 0, 2, 1), value=-3.0), F.pad(x, (2, 1), mode="reflect"), F.pad(x, (0, -1))],
    "index": lambda x: [x[:, torch.tensor([2, 0, 1])], x.index_select(2, torch.tensor([1, 1])), x[:, torch.tensor([[0], [1]]), torch.tensor([2, 3])]],
    "gather": lambda x: x.gather(1, x.argsort(1)[:, :2] * 0),
    "pixel_shuffle": lambda x: F.pixel_shuffle(x.reshape(-1, 12, 2, 2), 2),
    "cast": lambda x: [x.double() + 1, x.to(torch.float16), x.type_as(torch.zeros(1, dtype=torch.int32))],
    "full": lambda x: [x.new_zeros(2, 3), torch.ones_like(x), torch.full((x.shape[0], 2), 2.5), x.new_tensor(3.0) + x],
    "arange": lambda x: [torch.arange(x.shape[0]), torch.arange(1, 4) + x[:, 0, :3], torch.arange(0, 1, 0.25)],
    "add": lambda x: [x + 1, 1 + x, x.add(x, alpha=2), x + x[:, :1]],
    "sub": lambda x: [x - 1, 1 - x, torch.rsub(x, x + 1, alpha=3)],
    "div": lambda x: [x / 3, 3 / (x + 10), x // 0.5, torch.div(x, 0.3, rounding_mode="trunc")],
    "pow": lambda x: [x**2, x.square(), 2**x, (x.abs() + 1) ** x],
    "maximum": lambda x: [torch.maximum(x, -x), torch.max(x, x * 2), x.clamp(min=x.mean(1, keepdim=True))],
    "remainder": lambda x: x % 0.7,
    "clamp": lambda x: [x.clamp(-0.5, 0.5), x.clamp(max=0.1), F.hardtanh(x)],
    "where": lambda x: [torch.where(x > 0, x, 0.0), torch.where(x > 0, 1.0, x), x.masked_fill(x < 0, float("-inf")), torch.where(x > 0, 1.0, 0.0)],
    "logical_and": lambda x: (x > 0).logical_and(x < 1),
    "bitwise_and": lambda x: ((x > 0) & (x < 1)) | ~(x > 2),
    "relu6": lambda x: F.relu6(x * 4),
    "gelu": lambda x: [F.gelu(x), F.gelu(x, approximate="tanh")],
    "elu": lambda x: [F.elu(x, 0.5), F.leaky_relu(x, 0.2), F.selu(x), F.celu(x, 0.3), F.softplus(x, 2.0), F.mish(x), F.softsign(x), F.logsigmoid(x)],
    "prelu": lambda x: [F.prelu(x, torch.tensor([0.2])), F.prelu(x, torch.arange(6.0))],
    "sigmoid": lambda x: F.glu(x, 1),
    "mean": lambda x: [x.mean(), x.mean((1, 2), keepdim=True), x.mean(-1)],
    "sum": lambda x: [x.sum(), x.sum(1), (x > 0).sum(1), x.sum((1, 2), dtype=torch.float64)],
    "amax": lambda x: [x.amax(1), x.max(2).values, x.max(2).indices, x.min(), x.argmax(1), x.argmax()],
    "any": lambda x: [(x > 1).any(1), (x > 1).all(), (x > 1).any()],
    "var": lambda x: [x.var(1), x.var((1, 2), correction=0), x.std(1, unbiased=False), *torch.var_mean(x, 2)],
    "vector_norm": lambda x: [x.norm(dim=1), F.normalize(x, dim=2), torch.linalg.vector_norm(x, 1, 2)],
    "cumsum": lambda x: [x.cumsum(1), (x > 0).cumsum(1)],
    "topk": lambda x: list(x.topk(2, dim=1)),
    "softmax": lambda x: [x.softmax(-1), F.log_softmax(x, 1), x.softmax(1, dtype=torch.float64)],
    "exp": lambda x: x.logsumexp(1, keepdim=True),
    "matmul": lambda x: [x @ x.mT, torch.bmm(x, x.mT), x @ torch.ones(8), torch.einsum("bij,bkj->bik", x, x)],
    "addmm": lambda x: torch.addmm(torch.ones(4), x.flatten(1), torch.ones(48, 4)),
    "linear": lambda x: F.linear(x, torch.ones(3, 8), torch.ones(3)),
    "bilinear": lambda x: F.bilinear(x, x, torch.ones(3, 8, 8)),
    "conv": lambda x: [F.conv1d(x, torch.ones(4, 6, 3), padding=1), F.conv1d(x, torch.ones(4, 6, 4), padding="same"), F.conv1d(x, torch.ones(6, 1, 3), groups=6)],
    "conv_transpose": lambda x: F.conv_transpose1d(x, torch.ones(6, 2, 3), stride=2, padding=1, output_padding=1),
    "max_pool": lambda x: [F.max_pool1d(x, 3, 2, 1), F.max_pool2d(x.unsqueeze(1), 2), F.max_pool2d(x.unsqueeze(1), 3, 2, ceil_mode=True)],
    "avg_pool": lambda x: [F.avg_pool1d(x, 2), F.avg_pool2d(x.unsqueeze(1), 3, 2, 1, count_include_pad=False)],
    "adaptive_avg_pool": lambda x: [F.adaptive_avg_pool1d(x, 4), F.adaptive_avg_pool2d(x.unsqueeze(1), 1)],
    "adaptive_max_pool": lambda x: F.adaptive_max_pool2d(x.unsqueeze(1), (2, 3)),
    "interpolate": lambda x: [
        F.interpolate(x, scale_factor=2), F.interpolate(x.unsqueeze(1), size=(9, 5), mode="bilinear"),
        F.interpolate(x.unsqueeze(1), scale_factor=1.5, mode="bicubic", align_corners=True), F.interpolate(x.unsqueeze(1), (3, 4), mode="nearest-exact"),
    ],
    "grid_sample": lambda x: F.grid_sample(x.unsqueeze(1), x[:, :4, :2].unsqueeze(1), align_corners=True),
    "layer_norm": lambda x: [F.layer_norm(x, (8,)), F.layer_norm(x, (6, 8), torch.ones(6, 8), torch.ones(6, 8))],
    "group_norm": lambda x: F.group_norm(x, 3, torch.arange(6.0), torch.ones(6)),
    "instance_norm": lambda x: F.instance_norm(x),
    "rms_norm": lambda x: F.rms_norm(x, (8,), torch.arange(8.0), 1e-6),
    "attention": lambda x: [
        F.scaled_dot_product_attention(x, x, x), F.scaled_dot_product_attention(x, x, x, is_causal=True, scale=0.3),
        F.scaled_dot_product_attention(x, x, x, attn_mask=x[:, :, :6] > -1),
    ],
    "embedding": lambda x: F.embedding((x > 0).long(), torch.arange(6.0).reshape(2, 3)),
    "mul": lambda x: [torch.outer(x[0, 0], x[0, 1]), torch.addcmul(x, x, x + 1), x * x.shape[0]],
    "meshgrid": lambda x: list(torch.meshgrid(x[0, 0], x[0, 1], indexing="xy")),
    "channel_shuffle": lambda x: F.channel_shuffle(x.unsqueeze(-1), 3),
    "diff": lambda x: [x.diff(dim=1), x.diff(dim=-1, prepend=x[..., :1])],
}  # fmt: skip
_SPELT_OUT = {"meshgrid": "expand", "channel_shuffle": "permute", "diff": "sub"}
_WITH_OPAQUE_PARTS = {"gather"}  # argsort has no operator
_ROUNDED_TWICE = {
    "var",
    "mul",
    "add",
    "sub",
    "sigmoid",
}  # a standard deviation is a root of a variance, a fused product and sum are two operators


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_becomes_operators(name: str) -> None:
    torch.manual_seed(0)
    module = Apply(FUNCTIONS[name])
    graph = trace(module, torch.randn(2, 6, 8), dynamic={"x": {0: "batch"}})
    found = operators(graph)
    assert found[_SPELT_OUT.get(name, name)] >= 1
    assert found["opaque"] == 0 or name in _WITH_OPAQUE_PARTS
    for batch in (2, 5):
        assert_same(graph, module, (torch.randn(batch, 6, 8),), tolerance=1e-6 if name in _ROUNDED_TWICE else 0.0)


def test_unknown_operators_are_kept_as_they_are() -> None:
    module = Apply(
        lambda x: [
            torch.fft.rfft(x).abs(),
            x.sort(1, descending=True)[1],
            torch.cdist(x, x[:, :2]),
            x.reshape(x.shape[0], -1).unfold(1, 4, 2),
        ]
    )
    graph = trace(module, torch.randn(2, 6, 8), dynamic={"x": {0: "batch"}})
    assert operators(graph)["opaque"] >= 4
    for batch in (2, 5):
        assert_same(graph, module, (torch.randn(batch, 6, 8),))


def test_what_depends_on_nothing_is_a_constant() -> None:
    module = Apply(lambda x: x + torch.linspace(0, 1, 8) + torch.eye(8)[0] + torch.tensor(2.0))
    graph = trace(module, torch.randn(2, 8))
    assert operators(graph)["opaque"] == 0
    assert {p.role for p in graph.parameters.values()} == {"constant"}
    assert_same(graph, module, (torch.randn(2, 8),))


class Nested(nn.Module):
    """Nested arguments and results, numbers and None among them."""

    def forward(
        self, x: torch.Tensor, extra: dict[str, Any], mask: torch.Tensor | None = None, *, factor: int = 2
    ) -> dict[str, Any]:
        y = x * factor + extra["a"] + extra["list"][0]
        return {"result": y, "nothing": mask, "pair": (y + 1, 7), "again": y}


def test_nested_arguments_and_results_keep_their_structure() -> None:
    module = Nested()
    extra = {"a": torch.randn(3, 4), "list": [torch.randn(3, 4)]}
    args, kwargs = (torch.randn(3, 4), extra), {"factor": 3}
    graph = trace(module, args, kwargs, dynamic={"x": {0: "n"}, "extra": {"a": {0: "n"}, "list": [{0: "n"}]}})
    assert [value.name for value in graph.inputs] == ["x", "extra_a", "extra_list_0"]
    assert graph.output_names == ["result", "pair_0", "again"]
    assert {str(value.shape[0]) for value in graph.inputs} == {"n"}
    structure = graph.structure
    assert structure is not None
    assert structure.arguments == ("x", "extra", "factor")
    assert structure.positional == 2
    assert json.loads(structure.fixed_inputs) == {"3": 3}
    assert json.loads(structure.fixed_outputs) == {"1": None, "3": 7}
    specs = [pytree.treespec_loads(text) for text in (structure.inputs, structure.outputs)]
    assert [spec.num_leaves for spec in specs] == [4, 5]
    assert_same(graph, module, args, kwargs)


@dataclass
class Pair:
    left: torch.Tensor
    right: torch.Tensor | None


@dataclass
class Sum:
    total: torch.Tensor
    parts: Pair


class AddsPairs(nn.Module):
    def forward(self, pair: Pair, *more: torch.Tensor, **named: torch.Tensor) -> Sum:
        total = pair.left + more[0] * more[1] - named["scale"]
        return Sum(total, Pair(pair.left, None))


def test_dataclasses_and_starred_arguments() -> None:
    module, x = AddsPairs(), torch.randn(3, 4)
    rows = {0: "rows"}
    graph = trace(
        module,
        (Pair(x, None), x, x),
        {"scale": x},
        dynamic={"pair.left": rows, "more_0": rows, "more_1": rows, "scale": rows},
    )
    assert [value.name for value in graph.inputs] == ["pair_left", "more_0", "more_1", "scale"]
    assert graph.output_names == ["total", "parts_left"]
    assert "forward" not in vars(module)
    inputs = [torch.randn(5, 4) for _ in range(4)]
    expected = module(Pair(inputs[0], None), *inputs[1:3], scale=inputs[3])
    assert torch.equal(evaluate(graph, inputs)[0], expected.total)


def test_dynamic_may_name_nested_inputs_by_their_path_or_be_a_tuple() -> None:
    extra = {"a": torch.randn(3, 4), "list": [torch.randn(3, 4)]}
    by_path = trace(
        Nested(), (torch.randn(3, 4), extra), dynamic={"x": {0: "n"}, "extra.a": {0: "n"}, "extra_list_0": ["n"]}
    )
    in_order = trace(Nested(), (torch.randn(3, 4), extra), dynamic=({0: "n"}, {"a": {0: "n"}, "list": [{0: "n"}]}))
    assert [str(v.type) for v in by_path.inputs] == [str(v.type) for v in in_order.inputs] == ["f32[n, 4]"] * 3


def test_an_example_of_size_one_does_not_fix_the_size() -> None:
    module = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    graph = trace(module, torch.randn(1, 4), dynamic={"input": {0: "batch"}})
    assert str(graph.outputs[0].type) == "f32[batch, 3]"
    for batch in (1, 2, 9):
        assert_same(graph, module, (torch.randn(batch, 4),))


class Tied(nn.Module):
    """One tensor under two names, a buffer that is not saved, one that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.embed.weight
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("table", torch.randn(4), persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.embed(tokens)) + self.table)


def test_parameters_are_the_modules_own_and_tied_ones_are_one() -> None:
    module = Tied()
    graph = trace(module, torch.randint(0, 10, (6,)))
    tied = graph.parameters["embed.weight"]
    assert tied.aliases == ("head.weight",)
    assert "head.weight" not in graph.parameters
    assert tied.data is module.embed.weight
    assert {n for n, p in graph.parameters.items() if not p.persistent} == {"table"}
    assert not graph.parameters["norm.num_batches_tracked"].uses
    saved = {name for p in graph.parameters.values() if p.persistent for name in (p.name, *p.aliases)}
    assert saved == set(module.state_dict())


def test_the_modules_mode_is_restored() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.3), nn.BatchNorm1d(4))
    module[2].eval()
    module[0].train()
    graph = trace(module, torch.randn(3, 4))
    assert [part.training for part in module.modules()] == [True, True, True, False]
    assert operators(graph)["dropout"] == operators(graph)["batch_norm"] == 1


def test_names_follow_the_modules() -> None:
    graph = trace(zoo.ENTRIES["resnet18"].module(), *zoo.ENTRIES["resnet18"].args())
    names = {value.name for node in graph.nodes for value in node.outputs}
    assert {"conv1", "bn1", "layer1_0_conv1", "layer1_0_add", "fc"} <= names
    paths = {node.path for node in graph.nodes}
    assert {"layer4.1.bn2", "layer2.0.downsample.0"} <= paths
    assert graph.source.endswith("ResNet")


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("first", [False, True])
def test_recurrent_layers_keep_time_symbolic(kind: str, first: bool) -> None:
    module = getattr(nn, kind)(5, 7, num_layers=2, batch_first=first, bidirectional=True)
    graph = trace(module, torch.randn(3, 4, 5), dynamic={"input": {0: "a", 1: "b"}})
    assert operators(graph)[{"RNN": "rnn_tanh"}.get(kind, kind.lower())] == 1
    assert operators(graph)["opaque"] == 0
    for shape in ((3, 4, 5), (6, 2, 5)):
        assert_same(graph, module, (torch.randn(shape),))


def test_attention_layers_do_not_take_the_fused_path() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval().requires_grad_(False)
    graph = trace(layer, torch.randn(2, 5, 8), dynamic={"src": {0: "batch", 1: "sequence"}})
    assert operators(graph)["opaque"] == 0
    assert operators(graph)["attention"] == 1
    assert_same(graph, layer, (torch.randn(3, 4, 8),))
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("name", ["resnet18", "llama", "lstm"])
def test_modules_without_weights_trace(name: str) -> None:
    entry = zoo.ENTRIES[name]
    with torch.device("meta"):
        module = entry.build().eval()
    args, kwargs = entry.args()
    graph = trace(module, args, kwargs, dynamic=entry.dynamic)
    assert all(p.data.is_meta for p in graph.parameters.values() if p.role == "parameter")
    assert all(
        dict(module.named_parameters())[n] is p.data for n, p in graph.parameters.items() if p.role == "parameter"
    )
    real = trace(entry.module(), args, kwargs, dynamic=entry.dynamic)
    assert operators(graph) == operators(real)


def test_dynamic_space() -> None:
    entry = zoo.ENTRIES["resnet18"]
    module = entry.module()
    graph = trace(module, torch.randn(2, 3, 64, 96), dynamic={"x": {0: "batch", 2: "height", 3: "width"}})
    assert operators(graph)["opaque"] == 0
    assert_same(graph, module, (torch.randn(1, 3, 97, 70),))


# Errors


class Branches(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += 1
        return x + self.seen


class Chooses(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x - 1, (x,))


def assert_error(error: SutureError, code: Code, *parts: str) -> None:
    text = str(error)
    assert error.code is code
    assert "\n" not in text
    assert len(text) < 400
    for part in parts:
        assert part in text


def failure(module: Any, *args: Any, **options: Any) -> SutureError:
    with pytest.raises(SutureError) as caught:
        trace(module, args, **options)
    return caught.value


def test_not_a_module() -> None:
    assert_error(failure(lambda x: x, torch.ones(1)), Code.MODULE, "function", "nn.Module")


def test_arguments_that_forward_does_not_take() -> None:
    assert_error(failure(nn.Linear(3, 4), torch.ones(1), torch.ones(1)), Code.MODULE, "Linear", "input")


def test_inputs_of_the_wrong_shape() -> None:
    assert_error(failure(nn.Linear(3, 4), torch.ones(2, 5)), Code.MODULE, "2x5 and 3x4", "float32[2, 5]")


def test_a_failure_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    failure(nn.Linear(3, 4), torch.ones(2, 5))
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_inputs_of_the_wrong_type() -> None:
    assert_error(failure(nn.Embedding(3, 4), torch.ones(2, 5)), Code.MODULE, "float32[2, 5]", "embedding")


def test_a_branch_on_values() -> None:
    assert_error(
        failure(Branches(), torch.ones(2)), Code.EXPORT, "branches on the values", "test_trace.py", "torch.where"
    )


def test_a_size_that_depends_on_values() -> None:
    assert_error(failure(Apply(lambda x: x[x > 0] * 2), torch.ones(2)), Code.EXPORT, "depends on the values")


def test_a_module_that_keeps_state() -> None:
    assert_error(failure(Counts(), torch.ones(2)), Code.EXPORT, "seen", "state")


def test_a_branch_inside_the_graph() -> None:
    assert_error(failure(Chooses(), torch.ones(2)), Code.EXPORT, "cond", "torch.where")


def test_what_torch_export_cannot_run() -> None:
    assert_error(failure(Apply(lambda x: torch.tensor(x.numpy() * 2)), torch.ones(2)), Code.EXPORT, "numpy")


def test_a_dimension_that_the_module_fixes() -> None:
    error = failure(Apply(lambda x: x + torch.ones(4, 5)), torch.ones(4, 5), dynamic={"x": {0: "batch"}})
    assert_error(error, Code.DYNAMIC, "dimension 0 of x at 4")


@pytest.mark.parametrize(
    ("dynamic", "part"),
    [
        ({"y": {0: "batch"}}, "'y'"), ({"x": {2: "batch"}}, "dimension 2"), ({"x": {0: "no name"}}, "no name"), ({"x": {0: "n", 1: "n"}}, "n is 4"),
        (({0: "n"}, {0: "n"}), "2 entries"),
    ],
)  # fmt: skip
def test_dynamic_that_does_not_fit(dynamic: Any, part: str) -> None:
    assert_error(failure(Apply(lambda x: x * 2), torch.ones(4, 5), dynamic=dynamic), Code.DYNAMIC, part)


def test_a_failed_trace_leaves_the_module_as_it_was() -> None:
    module = Branches().train()
    failure(module, torch.ones(2))
    assert module.training
    assert torch.backends.mha.get_fastpath_enabled()


def test_inputs_of_another_element_type_than_the_weights_are_refused() -> None:
    with pytest.raises(SutureError) as caught:
        trace(nn.Linear(3, 4), (torch.ones(2, 3, dtype=torch.int64),))
    assert caught.value.code is Code.DTYPE and "i64 and f32" in str(caught.value) and "\n" not in str(caught.value)


def test_dropout_in_place_is_dropout() -> None:
    net = nn.Sequential(
        nn.Linear(3, 4), nn.Dropout(0.3, inplace=True), nn.Linear(4, 4), nn.Dropout2d(0.2, inplace=True)
    )
    graph = trace(net.eval(), (torch.ones(2, 3, 5, 3),))
    assert [node.operator.name for node in graph.nodes] == ["linear", "dropout", "linear", "dropout"]
    assert graph.nodes[-1].attributes["whole"] is True


def test_one_tensor_passed_twice_is_two_inputs() -> None:
    class Difference(nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return a - b

    x = torch.randn(2, 3)
    for graph in (trace(Difference(), (x, x)), trace(Difference(), kwargs={"a": x, "b": x})):
        assert [value.name for value in graph.inputs] == ["a", "b"]
        assert torch.equal(evaluate(graph, [x, 2 * x])[0], -x)
