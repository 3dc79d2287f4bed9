"""relational.compile: the same numbers and gradients as the program run eagerly; what is found out about edges once is kept while they are."""

from __future__ import annotations

import copy
import gc
import threading
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from suture import relational
from suture.drivers.relational import incidence, inspecting
from suture.ir.errors import Code, SutureError
from suture.relational import MessageGraph

DOUBLE = torch.float64


class Convolution(nn.Module):
    """R-GCN's layer: means for each relation, and a self-loop."""

    def __init__(self, types: int, i: int, o: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(types, i, o) / i**0.5)
        self.root = nn.Parameter(torch.randn(i, o) / i**0.5)

    def forward(self, g: MessageGraph, x: torch.Tensor) -> torch.Tensor:
        e = g.edges
        return g.mean(x[e.src] @ self.weight[e.type], per_relation=True) + x @ self.root


class Attention(nn.Module):
    """RGAT's layer: additive attention across relations, several heads, dropout."""

    def __init__(self, types: int, i: int, heads: int, d: int, p: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(types, i, heads * d) / i**0.5)
        self.query, self.key = nn.Parameter(torch.randn(heads, d)), nn.Parameter(torch.randn(heads, d))
        self.heads, self.p = heads, p

    def forward(self, g: MessageGraph, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        e = g.edges
        source = (x[e.src] @ self.weight[e.type]).unflatten(-1, (self.heads, -1))
        target = (x[e.dst] @ self.weight[e.type]).unflatten(-1, (self.heads, -1))
        scores = (source * self.query).sum(-1) + (target * self.key).sum(-1)
        shares = F.dropout(g.softmax(F.leaky_relu(scores, 0.2)), self.p, self.training)
        return g.sum(source * shares.unsqueeze(-1)).flatten(1), {"shares": shares}


def edges(nodes: int, count: int, types: int, seed: int = 0) -> MessageGraph:
    draw = torch.Generator().manual_seed(seed)
    numbers = [torch.randint(0, high, (count,), generator=draw) for high in (nodes, nodes, types)]
    return MessageGraph(*numbers, num_nodes=nodes, num_types=types)


def agree(module: nn.Module, compiled: Callable[..., torch.Tensor], g: MessageGraph, x: torch.Tensor) -> None:
    """Results and gradients are those of the module."""
    found = []
    for function in (module, compiled):
        leaf = x.clone().requires_grad_()
        y = function(g, leaf)
        weights = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).reshape(y.shape)
        found.append(
            [y, *torch.autograd.grad((y * weights).sum(), [leaf, *module.parameters()], materialize_grads=True)]
        )
    for mine, expected in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-10, atol=1e-10)


CONVOLUTION = relational.compile(Convolution(4, 5, 3).double())


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 12), st.integers(0, 40), st.integers(0, 99))
def test_results_and_gradients_are_those_of_the_program(nodes: int, count: int, seed: int) -> None:
    g = edges(nodes, count, 4, seed)
    agree(CONVOLUTION.program, CONVOLUTION, g, torch.randn(nodes, 5, dtype=DOUBLE))


@pytest.mark.parametrize(("compact", "reorder"), [(True, True), (False, True), (True, False), (False, False)])
def test_every_way_to_compute_it_gives_the_same(compact: bool, reorder: bool) -> None:
    module = Attention(4, 6, 2, 3).double()
    compiled = relational.compile(module, compact=compact, reorder=reorder)

    class First(nn.Module):
        def __init__(self, whole: nn.Module) -> None:
            super().__init__()
            self.whole = whole

        def forward(self, g: MessageGraph, x: torch.Tensor) -> torch.Tensor:
            return self.whole(g, x)[0]  # type: ignore[no-any-return]

    agree(First(module), First(compiled), edges(30, 200, 4), torch.randn(30, 6, dtype=DOUBLE))


def test_results_are_nested_as_the_program_nests_them() -> None:
    module, g, x = Attention(4, 6, 2, 3), edges(30, 200, 4), torch.randn(30, 6)
    y, more = relational.compile(module)(g, x)
    expected, others = module(g, x)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(more["shares"], others["shares"])


def test_a_step_of_an_optimiser_and_loaded_weights_are_seen() -> None:
    module, g, x = Convolution(4, 6, 6), edges(20, 80, 4), torch.randn(20, 6)
    compiled = relational.compile(module)
    optimiser = torch.optim.SGD(compiled.parameters(), 0.1)
    compiled(g, x).square().mean().backward()
    optimiser.step()
    torch.testing.assert_close(compiled(g, x), module(g, x))
    compiled.load_state_dict({name: torch.ones_like(each) for name, each in compiled.state_dict().items()}, assign=True)
    torch.testing.assert_close(compiled(g, x), module(g, x))
    module.double()
    torch.testing.assert_close(compiled(g, x.double()), module(g, x.double()))


def test_only_what_requires_a_gradient_gets_one_and_nothing_is_kept_without() -> None:
    compiled, g, x = relational.compile(Convolution(4, 6, 6)), edges(20, 80, 4), torch.randn(20, 6)
    with torch.no_grad():
        assert compiled(g, x).grad_fn is None
    compiled.program.weight.requires_grad_(False)
    y = compiled(g, x)
    y.sum().backward()
    assert compiled.program.weight.grad is None
    assert compiled.program.root.grad is not None
    prepared = incidence.find_incidence(g.tensors).prepared.values()
    assert sorted(each.variant.moved for each in prepared) == [(), ("root",)]
    without = next(each for each in prepared if not each.variant.moved)
    assert len(without.variant.ways.forward.outputs) == 1
    assert relational.compile(compiled.program, train=False)(g, x).grad_fn is None


def test_dropout_drops_what_the_program_drops() -> None:
    module, g, x = Attention(4, 6, 2, 3, p=0.4), edges(30, 200, 4), torch.randn(30, 6)
    compiled = relational.compile(module)
    for training in (True, False, True):
        compiled.train(training)
        with torch.random.fork_rng():
            torch.manual_seed(7)
            expected, shares = module(g, x)
        with torch.random.fork_rng():
            torch.manual_seed(7)
            y, mine = compiled(g, x)
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(mine["shares"], shares["shares"])
    agreed = torch.autograd.grad(expected.sum(), module.weight)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), module.weight), agreed)


def test_edges_are_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[str] = []
    run = inspecting.run_counting
    monkeypatch.setattr(
        inspecting, "run_counting", lambda node, *rest: looks.append(node.operator.name) or run(node, *rest)
    )
    first, second = relational.compile(Convolution(4, 6, 6)), relational.compile(Convolution(4, 6, 6))
    g, x = edges(20, 80, 4), torch.randn(20, 6)
    first(g, x)
    assert looks
    looks.clear()
    first(g, x)
    second(g, x)  # another layer on the same edges
    first(MessageGraph(g.src, g.dst, g.type, num_nodes=20, num_types=4), x)  # the same tensors
    assert not looks
    g.src[0] = (g.src[0] + 1) % 20
    torch.testing.assert_close(first(g, x), first.program(g, x))
    assert looks


def test_what_was_found_out_goes_with_the_edges() -> None:
    incidence.forget()
    compiled, x = relational.compile(Convolution(4, 6, 6)), torch.randn(20, 6)
    for seed in range(4):
        compiled(edges(20, 80, 4, seed), x)
        gc.collect()
        assert len(incidence._KNOWN) == 1


def test_other_sizes_are_compiled_for_already(monkeypatch: pytest.MonkeyPatch) -> None:
    module = Convolution(4, 6, 6)
    compiled = relational.compile(module, compact=False, reorder=False)
    compiled(edges(20, 80, 4), torch.randn(20, 6))
    monkeypatch.setattr(
        "suture.drivers.relational.variants.compile_graph", lambda *_, **__: pytest.fail("compiled again")
    )
    for nodes, count in ((20, 81), (37, 0), (1, 5), (300, 2000)):
        g, x = edges(nodes, count, 4), torch.randn(nodes, 6)
        torch.testing.assert_close(compiled(g, x), module(g, x))
    assert len(list(compiled.programs())) == 1


def test_results_are_the_same_bits_at_every_run() -> None:
    g, x = edges(50, 900, 4), torch.randn(50, 6)
    module = Attention(4, 6, 2, 3)
    found = []
    for _ in range(2):
        incidence.forget()
        leaf = x.clone().requires_grad_()
        y = relational.compile(module)(g, leaf)[0]
        found.append([y, *torch.autograd.grad(y.square().sum(), [leaf, *module.parameters()])])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_calls_from_several_threads_do_not_meet() -> None:
    compiled = relational.compile(Convolution(4, 6, 6))
    graphs = [edges(20 + k, 80 + k, 4, k) for k in range(4)]
    inputs = [torch.randn(20 + k, 6) for k in range(4)]
    expected = [compiled.program(g, x) for g, x in zip(graphs, inputs, strict=True)]
    wrong: list[int] = []

    def work(k: int) -> None:
        for _ in range(10):
            if not torch.allclose(compiled(graphs[k], inputs[k]), expected[k], atol=1e-5):
                wrong.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not wrong


def test_a_copy_has_weights_of_its_own() -> None:
    compiled, g, x = relational.compile(Convolution(4, 6, 6)), edges(20, 80, 4), torch.randn(20, 6)
    y = compiled(g, x)
    twin = copy.deepcopy(compiled)
    with torch.no_grad():
        twin.program.root.zero_()
        twin.program.weight.zero_()
    assert not twin(g, x).any()
    assert torch.equal(compiled(g, x), y)


def test_edges_made_in_inference_mode_serve_too() -> None:
    compiled = relational.compile(Convolution(4, 6, 6))
    with torch.inference_mode():
        g, x = edges(20, 80, 4), torch.randn(20, 6)
        torch.testing.assert_close(compiled(g, x), compiled.program(g, x))
        assert torch.equal(compiled(g, x), compiled(g, x))


def test_numbers_that_are_none_pass_through_as_in_torch() -> None:
    module, g, x = Convolution(4, 6, 6), edges(20, 80, 4), torch.randn(20, 6)
    x[3] = torch.nan
    torch.testing.assert_close(relational.compile(module)(g, x), module(g, x), equal_nan=True)


def refused(code: Code, call: Callable[[], object]) -> str:
    with pytest.raises(SutureError) as caught:
        call()
    assert caught.value.code == code
    return str(caught.value)


def test_what_does_not_fit_is_refused_with_its_place() -> None:
    compiled, x = relational.compile(Convolution(3, 6, 6)), torch.randn(20, 6)
    src, dst = torch.tensor([0, 1, 2, 3]), torch.tensor([1, 2, 3, 4])
    more = MessageGraph(src, dst, torch.tensor([0, 4, 1, 3]), num_nodes=20, num_types=5)
    assert "5" in refused(Code.RELATION, lambda: compiled(more, x))
    wrong = MessageGraph(src, dst, torch.tensor([0, 4, 1, 3]), num_nodes=20, num_types=3, validate=False)
    assert "2 of 4 types in type lie outside 0 to 2: 4 at 1" in refused(Code.INPUT, lambda: compiled(wrong, x))
    good = MessageGraph(src, dst, torch.zeros(4, dtype=torch.int64), num_nodes=20, num_types=3)
    compiled(good, x)
    assert "a relational.MessageGraph" in refused(Code.RELATION, lambda: compiled(torch.stack([src, dst]), x))
    refused(Code.INPUT, lambda: compiled(good, x[:3]))
    unchecked = MessageGraph(src, dst + 30, good.type, num_nodes=20, num_types=3, validate=False)
    assert "4 of 4 indices in dst lie outside 0 to 19: 31 at 0" in refused(Code.INPUT, lambda: compiled(unchecked, x))
    refused(Code.OPTION, lambda: relational.compile(Convolution(3, 6, 6), target="tpu"))  # type: ignore[arg-type]
    refused(Code.MODULE, lambda: relational.compile(F.relu))  # type: ignore[arg-type]
    refused(Code.DEVICE, lambda: compiled(good, x.to("meta")))


def test_a_second_derivative_is_refused() -> None:
    compiled, g = relational.compile(Convolution(4, 6, 6)), edges(20, 80, 4)
    x = torch.randn(20, 6, requires_grad=True)
    y = compiled(g, x).square().sum()
    assert "second derivative" in refused(Code.GRADIENT, lambda: torch.autograd.grad(y, x, create_graph=True))


class ByKind(nn.Module):
    """A projection for each type of node, then sums of neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(3, 6, 4)), nn.Parameter(torch.randn(3, 4))

    def forward(self, g: MessageGraph, x: torch.Tensor) -> torch.Tensor:
        kind = g.nodes.type
        return g.sum((x @ self.weight[kind] + self.bias[kind])[g.edges.src])


def test_indices_are_checked_once_and_not_at_every_call() -> None:
    module, x = ByKind(), torch.randn(20, 6)
    numbers = [torch.randint(high, (count,)) for high, count in ((20, 70), (20, 70), (3, 20))]
    g = MessageGraph(*numbers[:2], num_nodes=20, node_type=numbers[2], num_node_types=3)
    torch.testing.assert_close(relational.compile(module)(g, x), module(g, x))
    (prepared,) = incidence.find_incidence(g.tensors).prepared.values()
    ways = (prepared.variant.forward, prepared.variant.backward)
    assert all(len(way.graph.outputs) == len(way.results) for way in ways)
    wrong = MessageGraph(*numbers[:2], num_nodes=20, node_type=numbers[2] + 1, num_node_types=3, validate=False)
    message = refused(Code.INPUT, lambda: relational.compile(module)(wrong, x))
    assert "in node_type lie outside 0 to 2: 3 at" in message
