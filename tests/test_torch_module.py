"""to_torch gives a module that runs, trains, saves and loads like the one that was traced."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import zoo
from operator_examples import EXAMPLES, Example
from torch import nn
from torch.utils import _pytree as pytree

from suture.backends.torch_module import to_torch
from suture.frontends.torch_export import trace
from suture.ir import operator
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph
from suture.ir.semantics import evaluate
from suture.ir.sizes import symbol
from suture.ir.text import parse_graph
from suture.ir.types import TensorType


def require_identical(expected: Any, received: Any) -> None:
    """The same nesting, the same bits."""
    left, left_spec = pytree.tree_flatten(expected)
    right, right_spec = pytree.tree_flatten(received)
    assert left_spec == right_spec
    for a, b in zip(left, right, strict=True):
        if isinstance(a, torch.Tensor):
            assert a.dtype == b.dtype
            torch.testing.assert_close(b, a, rtol=0, atol=0, equal_nan=True)
        else:
            assert a == b


def loss_of(result: Any) -> torch.Tensor:
    """One number that every element of a result moves."""
    tensors = [
        leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()
    ]
    return sum((tensor * torch.linspace(0.5, 1.5, tensor.numel()).reshape(tensor.shape)).mean() for tensor in tensors)


def require_equal_gradients(original: nn.Module, rebuilt: nn.Module, args: Any, kwargs: Any) -> None:
    """A step from the same random numbers: the same result to the bit, the same gradients."""
    results = []
    for module in (original, rebuilt):
        module.zero_grad()
        torch.manual_seed(7)
        result = module(*args, **kwargs)
        loss_of(result).backward()
        results.append([leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)])
    require_identical(*results)
    gradients = dict(rebuilt.named_parameters(remove_duplicate=False))
    for name, parameter in original.named_parameters(remove_duplicate=False):
        other = gradients[name].grad
        assert (parameter.grad is None) == (other is None), name
        if parameter.grad is not None and other is not None:
            # summed in another order where a value has several readers
            torch.testing.assert_close(
                other, parameter.grad, rtol=1e-4, atol=1e-5 * float(parameter.grad.abs().max()), msg=name
            )


def require_equal_training(original: nn.Module, rebuilt: nn.Module, args: Any, kwargs: Any) -> None:
    """One step in training mode: the same gradients, and the same buffers after it."""
    require_equal_gradients(original.train(), rebuilt.train(), args, kwargs)
    state = rebuilt.state_dict()
    for name, buffer in original.state_dict().items():
        assert torch.equal(state[name], buffer), name


HEAVY = {
    "densenet121", "efficientnet_b0", "convnext_tiny", "swin_tiny_patch4_window7_224", "inception_v3", "hrnet_w18_small", "resnet50", "torchvision_vit",
}  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in HEAVY else []) for name in zoo.ENTRIES]
)
def test_every_architecture_comes_back_as_it_went(name: str) -> None:
    entry = zoo.ENTRIES[name]
    module = zoo.randomise(entry.module())
    args, kwargs = entry.args(2, 12)
    rebuilt = to_torch(trace(module, args, kwargs, dynamic=entry.dynamic))
    original_state = module.state_dict()
    assert rebuilt.state_dict().keys() == original_state.keys()
    rebuilt.load_state_dict(original_state, strict=True)
    assert all(tensor.data_ptr() == rebuilt.state_dict()[key].data_ptr() for key, tensor in original_state.items())
    args, kwargs = entry.args(3, 9)
    # with gradients, because without them nn.MultiheadAttention takes a fused kernel that rounds otherwise
    require_identical(module(*args, **kwargs), rebuilt(*args, **kwargs))
    args, kwargs = entry.args(2, 12)
    # the rebuilt module holds the very parameters of the original: gradients need one of their own
    require_equal_gradients(copy.deepcopy(module), rebuilt, args, kwargs)


def without_hidden_dropout(module: nn.Module) -> nn.Module:
    """Switch off what Python code does in training mode only, where tracing cannot see it: attention's own dropout, stochastic depth."""
    for name, part in module.named_modules():
        for attribute in ("drop_prob", "dropout", "attention_dropout"):
            if isinstance(getattr(part, attribute, None), float):
                setattr(part, attribute, 0.0)
        if isinstance(part, nn.Dropout) and name.endswith(("attn_dropout", "attention.self.dropout")):
            part.p = 0.0
    return module


TRAINED = (
    "resnet18",
    "mobilenetv3_large_100",
    "swin_tiny_patch4_window7_224",
    "bert",
    "gpt2",
    "llama",
    "t5",
    "lstm",
    "unet",
)


@pytest.mark.parametrize("name", TRAINED)
def test_it_trains_like_the_original(name: str) -> None:
    entry = zoo.ENTRIES[name]
    module = without_hidden_dropout(zoo.randomise(entry.module()))
    args, kwargs = entry.args(2, 12)
    graph = trace(copy.deepcopy(module), args, kwargs, dynamic=entry.dynamic)
    require_equal_training(module, to_torch(graph), args, kwargs)


class Small(nn.Module):
    """A norm with a counter, dropout, tied weights, buffers of both kinds, nested arguments and results."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5))
        self.head = nn.Linear(6, 6, bias=False)
        self.head.weight = self.body[0].weight
        self.register_buffer("offset", torch.arange(6.0))
        self.body.register_buffer("hidden", torch.ones(6) * 2, persistent=False)
        self.register_buffer("alone", torch.ones(6) * 3, persistent=False)
        self.frozen = nn.Parameter(torch.ones(6), requires_grad=False)
        self.register_buffer("never_read", torch.zeros(3))

    def forward(self, x: torch.Tensor, *, extra: dict[str, Any]) -> dict[str, Any]:
        y = self.body(x) + self.offset * self.body.hidden + self.alone * self.frozen
        return {"out": self.head(y), "pair": (y, [extra["shift"][0] + 1, None])}


@pytest.fixture
def small() -> tuple[nn.Module, nn.Module, tuple[Any, ...], dict[str, Any]]:
    torch.manual_seed(0)
    module = zoo.randomise(Small().eval())
    args, kwargs = (torch.randn(4, 6),), {"extra": {"scale": 2.0, "shift": [torch.randn(4, 6)]}}
    rebuilt = to_torch(
        trace(copy.deepcopy(module), args, kwargs, dynamic={"x": {0: "batch"}, "extra": {"shift": [{0: "batch"}]}})
    )
    return module, rebuilt, args, kwargs


def test_arguments_and_results_are_nested_as_they_were(small: Any) -> None:
    module, rebuilt, args, kwargs = small
    require_identical(module(*args, **kwargs), rebuilt(*args, **kwargs))
    require_identical(module(x=args[0], **kwargs), rebuilt(x=args[0], **kwargs))


def test_training_mode_follows_the_module(small: Any) -> None:
    module, rebuilt, args, kwargs = small
    assert not rebuilt.training
    require_equal_training(module, rebuilt, args, kwargs)
    assert int(rebuilt.state_dict()["body.1.num_batches_tracked"]) == 1
    for part in (module, rebuilt):
        part.eval()
        require_identical(part(*args, **kwargs), part(*args, **kwargs))
    require_identical(module(*args, **kwargs), rebuilt(*args, **kwargs))


def test_one_submodule_can_be_put_in_another_mode(small: Any) -> None:
    module, rebuilt, args, kwargs = small
    for part in (module, rebuilt):
        part.train()
        part.get_submodule("body.1").eval()  # frozen statistics, as in fine-tuning
    torch.manual_seed(3)
    expected = module(*args, **kwargs)
    torch.manual_seed(3)
    require_identical(expected, rebuilt(*args, **kwargs))
    assert int(rebuilt.state_dict()["body.1.num_batches_tracked"]) == 0


def test_names_ties_and_persistence_are_kept(small: Any) -> None:
    module, rebuilt, _, _ = small
    assert rebuilt.state_dict().keys() == module.state_dict().keys()
    assert rebuilt.head.weight is rebuilt.get_submodule("body.0").weight
    assert {name for name, _ in rebuilt.named_parameters()} == {name for name, _ in module.named_parameters()}
    assert not rebuilt.frozen.requires_grad
    assert rebuilt.get_parameter("body.0.weight").requires_grad
    assert dict(rebuilt.named_buffers()).keys() - {"constants.alone"} == dict(module.named_buffers()).keys() - {"alone"}


def copied(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module)


def pickled(module: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(module))


def saved(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def test_what_was_changed_by_hand_is_pickled_as_it_is(small: Any) -> None:
    _, rebuilt, args, kwargs = small
    for node in rebuilt.graph.nodes:
        if node.target is F.dropout or node.target is torch.relu:
            node.target = torch.tanh
            node.args = node.args[:1]
    rebuilt.recompile()
    require_identical(rebuilt(*args, **kwargs), pickled(rebuilt)(*args, **kwargs))


def test_a_language_model_with_ranges_and_masks_can_be_pickled() -> None:
    entry = zoo.ENTRIES["llama"]
    args, kwargs = entry.args(2, 12)
    rebuilt = to_torch(trace(entry.module(), args, kwargs, dynamic=entry.dynamic))
    args, kwargs = entry.args(3, 7)
    require_identical(rebuilt(*args, **kwargs), pickled(rebuilt)(*args, **kwargs))


@pytest.mark.parametrize("transport", [copied, pickled, saved])
def test_copies_keep_names_ties_and_modes(small: Any, transport: Callable[[nn.Module], nn.Module]) -> None:
    module, rebuilt, args, kwargs = small
    twin = transport(rebuilt)
    assert twin.state_dict().keys() == module.state_dict().keys()
    assert dict(twin.named_buffers()).keys() == dict(rebuilt.named_buffers()).keys()
    assert twin.head.weight is twin.get_submodule("body.0").weight
    assert twin.head.weight is not rebuilt.head.weight
    twin.eval()
    require_identical(module(*args, **kwargs), twin(*args, **kwargs))
    require_equal_training(module, twin, args, kwargs)


def test_it_compiles_and_exports_again(small: Any) -> None:
    module, rebuilt, args, kwargs = small
    compiled = torch.compile(rebuilt, backend="eager", fullgraph=True)
    require_identical(module(*args, **kwargs), compiled(*args, **kwargs))
    graph = trace(rebuilt, args, kwargs, dynamic={"x": {0: "batch"}, "extra": {"shift": [{0: "batch"}]}})
    x, shift = torch.randn(5, 6), torch.randn(5, 6)
    again = to_torch(graph)
    require_identical(
        module(x, extra={"scale": 2.0, "shift": [shift]}), again(x, extra={"scale": 2.0, "shift": [shift]})
    )
    assert again.state_dict().keys() == module.state_dict().keys()


def test_a_norm_as_the_whole_module_counts_its_batches() -> None:
    module = zoo.randomise(nn.BatchNorm2d(3).eval())
    x = torch.randn(2, 3, 4, 4)
    rebuilt = to_torch(trace(copy.deepcopy(module), (x,)))
    require_equal_training(module, rebuilt, (x,), {})
    assert rebuilt.state_dict().keys() == module.state_dict().keys()


class Functional(nn.Module):
    """Dropout without a module of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, 0.3, self.training)


def test_functional_dropout_follows_the_module() -> None:
    x = torch.randn(3, 50, requires_grad=True)
    rebuilt = to_torch(trace(Functional(), (x,)))
    require_equal_training(Functional(), rebuilt, (x,), {})
    assert torch.equal(rebuilt.eval()(x), x)


def test_tensors_are_shared_with_the_graph_and_can_move() -> None:
    graph = trace(nn.Linear(3, 2), (torch.randn(1, 3),))
    rebuilt = to_torch(graph)
    assert rebuilt.weight.data_ptr() == graph.parameters["weight"].data.data_ptr()
    with torch.no_grad():
        rebuilt.weight.mul_(2)
    x = torch.randn(4, 3)[:1]
    torch.testing.assert_close(evaluate(graph, [x])[0], rebuilt(x), rtol=0, atol=0)
    assert rebuilt.to(torch.float64)(x.double()).dtype == torch.float64


def test_new_tensors_are_made_where_the_input_is() -> None:
    text = "graph g(%x: f32[n, 4]) {\n  %r: i64[n] = arange()\n  %f: f32[n, 4] = full() value=2.0\n  %y: f32[n, 4] = mul(%x, %f)\n  return %y as y, %r as r\n}\n"
    y, r = to_torch(parse_graph(text))(torch.empty(3, 4, device="meta"))
    assert y.is_meta
    assert r.is_meta
    assert tuple(r.shape) == (3,)


def test_sizes_are_computed_from_the_inputs_shapes() -> None:
    n, m = symbol("n"), symbol("m")
    graph = Graph("sizes")
    a = graph.add_input("a", TensorType(torch.float32, (2 * n + 1, m)))
    b = graph.add_input("b", TensorType(torch.float32, (m,)))
    flat = graph.add("reshape", [a], shapes=[((2 * n + 1) * m,)]).output
    part = graph.add("slice", [flat], {"start": n, "step": 2}, shapes=[((n * m) // 2,)]).output
    scaled = graph.add("mul", [part, None], {"scalar": n + m * 3}).output
    ranged = graph.add("arange", [], {"start": 1, "step": 2}, shapes=[(n % 3 + 1,)]).output
    graph.set_outputs([scaled, ranged, graph.add("add", [b, None], {"scalar": 1}).output])
    module = to_torch(graph)
    for size in (4, 5, 9):
        inputs = [torch.randn(2 * size + 1, 6), torch.randn(6)]
        require_identical(tuple(evaluate(graph, inputs)), module(*inputs))
    code = module.code
    assert "suture" not in code


def test_a_size_that_follows_from_no_input_is_an_error() -> None:
    graph = Graph("sizes")
    x = graph.add_input("x", TensorType(torch.float32, (symbol("n") * symbol("m"),)))
    graph.set_outputs([graph.add("reshape", [x], shapes=[(symbol("n"), symbol("m"))]).output])
    with pytest.raises(SutureError, match=r"^\[S551\] sizes: the size n follows from no input's shape") as caught:
        to_torch(graph)
    assert caught.value.code is Code.TORCH


def test_a_tensor_that_no_module_can_hold_is_an_error() -> None:
    graph = Graph("names")
    x = graph.add_input("x", TensorType(torch.float32, (2,)))
    graph.add_parameter("weight", torch.ones(2))
    y = graph.add("mul", [x, graph.add_parameter("weight.inner", torch.ones(2))]).output
    graph.set_outputs([y])
    with pytest.raises(SutureError, match=r"no module can hold the tensor weight.inner; rename it"):
        to_torch(graph)


def test_a_graph_that_was_given_other_outputs_says_that_the_structure_does_not_fit() -> None:
    graph = trace(nn.Linear(3, 2), (torch.randn(1, 3),))
    graph.set_outputs([*graph.outputs, graph.inputs[0]], ["y", "x"])
    with pytest.raises(SutureError, match=r"the traced module returned 1 tensors, the graph returns 2"):
        to_torch(graph)
    graph.structure = None
    assert len(to_torch(graph)(torch.randn(1, 3))) == 2


BY_DATA = {
    "segment_max", "segment_softmax", "typed_linear", "typed_outer", "csr_sum", "csr_max", "csr_spread", "grouped_linear", "grouped_outer", "sort_order",
    "inverse_order", "run_pointers", "unique_rows", "tile_runs", "fewer_ends", "meeting_rows",
}  # fmt: skip
"""Operators that no row of torch calls of fixed shapes computes: the module calls the evaluator's own functions."""


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_an_operator_becomes_a_plain_torch_call(example: Example) -> None:
    tensors = example.tensors()
    graph = example.node(tensors).graph
    module = to_torch(graph)
    inputs = [tensor for tensor in tensors if tensor is not None]
    expected = evaluate(graph, inputs)
    require_identical(expected[0] if len(expected) == 1 else tuple(expected), module(*inputs))
    assert ("suture" in module.code) == (example.operator in BY_DATA)
    require_identical(module(*inputs), pickled(module)(*inputs))
    if graph.nodes[0].operator.training:
        torch.manual_seed(5)
        expected = evaluate(graph, inputs, training=True)
        torch.manual_seed(5)
        require_identical(expected[0] if len(expected) == 1 else tuple(expected), module.train()(*inputs))


def test_operators_of_several_results_give_each() -> None:
    text = (
        "graph g(%x: f32[2, 9]) {\n  %a: f32[2, 4], %b: f32[2, 5] = split(%x) dim=1\n  %v: f32[2, 3], %i: i64[2, 3] = topk(%b) k=3 largest=false\n"
        "  %c: f32[2, 4] = split(%a) dim=1\n  return %v as v, %i as i, %c as c\n}\n"
    )
    graph = parse_graph(text)
    x = torch.randn(2, 9)
    require_identical(tuple(evaluate(graph, [x])), to_torch(graph)(x))


@pytest.mark.parametrize("kind", [nn.GRU, nn.RNN, nn.LSTM])
def test_recurrent_layers_drop_out_between_layers_in_training(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    module = kind(4, 5, num_layers=2, dropout=0.4, bidirectional=True, batch_first=True).eval()
    x = torch.randn(3, 7, 4)
    require_equal_training(module, to_torch(trace(copy.deepcopy(module), (x,))), (x,), {})


def test_an_opaque_operator_is_called_as_it_was() -> None:
    class Sorted(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            values, order = torch.sort(x, dim=1, descending=True)
            return values * 2, order

    x = torch.randn(3, 7)
    graph = trace(Sorted(), (x,), dynamic={"x": {0: "batch"}})
    assert [node.operator.name for node in graph.nodes] == ["opaque", "mul"]
    wide = torch.randn(5, 7)
    require_identical(Sorted()(wide), to_torch(graph)(wide))


def test_an_operator_declared_elsewhere_is_called_by_its_own_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator, "OPERATORS", dict(operator.OPERATORS))
    operator.declare("doubled", "x[*d] -> y[*d]", lambda x, *, times: x * 2 * times, attributes={"times": 1})
    operator.declare("softer", "x[*d] -> y[*d]", F.softshrink, attributes={"lambd": 0.5})
    graph = Graph("own")
    x = graph.add_input("x", TensorType(torch.float32, (3,)))
    y = graph.add("softer", [graph.add("doubled", [x], {"times": 3}).output]).output
    graph.set_outputs([y])
    module = to_torch(graph)
    assert "softshrink" in module.code
    given = torch.tensor([0.01, -0.2, 3.0])
    require_identical(F.softshrink(given * 6, 0.5), module(given))
