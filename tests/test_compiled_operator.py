"""Compiled graphs in torch's own world: one operator for torch.compile and torch.export, gradients where they were asked for, errors for bad calls."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import pytest
import torch
from cuda_stand_in import devices
from standalone_nets import traced
from torch import nn

import suture
from suture.backends import compiled_operator
from suture.backends.compiled_cuda import compile_graph_for_cuda
from suture.backends.compiled_operator import bind_sizes, measure, register
from suture.drivers.differentiating import DifferentiableGraph
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph
from suture.ir.semantics import evaluate
from suture.ir.sizes import parse_size
from suture.ir.types import TensorType

pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++"))), reason="no C++ compiler on this machine"
)


class Around(nn.Module):
    """A module that calls a compiled graph."""

    def __init__(self, inner: object) -> None:
        super().__init__()
        self.inner = inner
        self.gain = nn.Parameter(torch.full((3,), 2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x + 1.0) * self.gain  # type: ignore[operator]


def reference(graph: Graph, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return evaluate(graph, [x])[0]


# an operator


def test_opcheck_accepts_it() -> None:
    compiled = suture.compile(traced("mlp"))
    for rows in (1, 5):
        results = torch.library.opcheck(compiled.operator, ([torch.randn(rows, 6)],))
        assert set(results.values()) == {"SUCCESS"}


def test_opcheck_accepts_results_that_share_memory_in_the_graph() -> None:
    graph = traced("ends")  # an input, a parameter and a value twice are returned
    compiled = suture.compile(graph)
    x = torch.randn(4, 3)
    assert set(torch.library.opcheck(compiled.operator, ([x],)).values()) == {"SUCCESS"}
    results = compiled.operator([x])
    assert len({each.untyped_storage().data_ptr() for each in [x, *results]}) == 6
    for found, wanted in zip(results, evaluate(graph, [x]), strict=True):
        torch.testing.assert_close(found, wanted.detach())


@pytest.mark.parametrize("dynamic", [None, True])
def test_torch_compile_takes_a_module_that_calls_it(dynamic: bool | None) -> None:
    graph = traced("mlp")
    module = Around(suture.compile(graph))
    fast = torch.compile(module, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for rows in (4, 7):
        x = torch.randn(rows, 6)
        torch.testing.assert_close(fast(x), reference(graph, x + 1.0) * 2.0, rtol=1e-4, atol=1e-5)
    fast(x).sum().backward()  # the gain has a gradient, the compiled graph needs none
    torch.testing.assert_close(module.gain.grad, reference(graph, x + 1.0).sum(0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("strict", [False, True])
def test_torch_export_takes_a_module_that_calls_it(strict: bool) -> None:
    graph = traced("mlp")
    program = torch.export.export(
        Around(suture.compile(graph)),
        (torch.randn(4, 6),),
        dynamic_shapes={"x": {0: torch.export.Dim("rows")}},
        strict=strict,
    )
    called = [node for node in program.graph.nodes if str(node.target).startswith("suture.mlp_")]
    assert len(called) == 1
    gc.collect()  # what was traced keeps what it calls
    for rows in (2, 9):
        x = torch.randn(rows, 6)
        torch.testing.assert_close(program.module()(x).detach(), reference(graph, x + 1.0) * 2.0, rtol=1e-4, atol=1e-5)


def test_named_inputs_and_several_results_are_traced_too() -> None:
    graph = traced("mixer")
    compiled = suture.compile(graph)
    tokens, shift = torch.randint(0, 11, (2, 5)), torch.randn(24)
    fast = torch.compile(lambda a, b: compiled(a, shift=b), fullgraph=True, backend="aot_eager")
    for found, wanted in zip(fast(tokens, shift), evaluate(graph, [tokens, shift]), strict=True):
        torch.testing.assert_close(found, wanted.detach(), rtol=1e-4, atol=1e-5)


def test_equal_graphs_have_one_operator_and_others_another() -> None:
    one, two = suture.compile(traced("mlp")), suture.compile(traced("mlp"))
    assert one.operator is two.operator
    other = traced("mlp")
    with torch.no_grad():
        next(iter(other.parameters.values())).data.add_(1.0)
    assert suture.compile(other).operator is not one.operator
    x = torch.randn(2, 6)
    del one
    gc.collect()
    torch.testing.assert_close(two.operator([x])[0], reference(traced("mlp"), x), rtol=1e-4, atol=1e-5)


def test_what_nobody_uses_is_let_go_until_it_was_traced() -> None:
    graph = traced("picks")
    compiled = suture.compile(graph)
    gone, operator = weakref.ref(compiled), compiled.operator
    del compiled
    gc.collect()
    assert gone() is None
    with pytest.raises(SutureError) as caught:
        operator([torch.randn(2, 6), torch.tensor([1])])
    assert caught.value.code is Code.INPUT and "is gone" in str(caught.value)


def test_the_operators_name_is_the_same_in_another_process() -> None:
    code = "import sys; sys.path.insert(0, 'tests'); import suture; from standalone_nets import traced; print(suture.compile(traced('mlp')).operator)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent
    )
    assert done.stdout.strip() == str(suture.compile(traced("mlp")).operator)


def test_symbols_are_read_off_shapes_that_are_sums_and_products() -> None:
    types = [
        TensorType(torch.float32, (parse_size("2*n + 1"), 3)),
        TensorType(torch.float32, (parse_size("n*m"),)),
        TensorType(torch.float32, (parse_size("n*m + k"),)),
    ]
    sizes = bind_sizes(types, [torch.zeros(9, 3), torch.zeros(20), torch.zeros(27)])
    assert sizes == {"n": 4, "m": 5, "k": 7}
    assert measure(parse_size("max(n, k)//3 + n % 3 - min(m, 2)"), sizes) == 1
    with pytest.raises(SutureError) as caught:
        bind_sizes(types, [torch.zeros(9, 4), torch.zeros(20), torch.zeros(27)])
    assert caught.value.code is Code.INPUT and "has 4 where its size is 3" in str(caught.value)
    with pytest.raises(SutureError, match="no input says what"):
        bind_sizes([TensorType(torch.float32, (parse_size("n*m"),))], [torch.zeros(20)])


# gradients


def compared(graph: Graph, *inputs: torch.Tensor) -> DifferentiableGraph:
    """A compiled graph whose gradients are those of the evaluator."""
    compiled = suture.compile(graph, train=True)
    parameters = dict(compiled.named_parameters())
    given = [x.clone().requires_grad_(x.is_floating_point()) for x in inputs]
    again = [x.clone().requires_grad_(x.is_floating_point()) for x in inputs]
    results = compiled(*given)
    results = results if isinstance(results, tuple) else (results,)
    replaced = {name: each.detach().clone().requires_grad_() for name, each in parameters.items()}
    expected = evaluate(graph, again, parameters=replaced)
    seeds = [torch.randn_like(each) for each in expected]
    sides = []
    for outputs, ends in ((results, [*given, *parameters.values()]), (expected, [*again, *replaced.values()])):
        total = sum((out * seed).sum() for out, seed in zip(outputs, seeds, strict=True))
        moving = [end for end in ends if end.requires_grad]
        sides.append(torch.autograd.grad(total, moving))  # type: ignore[arg-type]
    for found, wanted in zip(results, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    for found, wanted in zip(*sides, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
    return compiled


@pytest.mark.parametrize("rows", [1, 4, 13])
def test_gradients_flow_to_inputs_and_parameters(rows: int) -> None:
    compared(traced("mlp"), torch.randn(rows, 6))


@pytest.mark.parametrize("name", ["mixer", "picture", "attends", "picks"])
def test_gradients_flow_through_tables_convolutions_attention_and_look_ups(name: str) -> None:
    torch.manual_seed(1)
    inputs = {
        "mixer": (torch.randint(0, 11, (3, 4)), torch.randn(24)),
        "picture": (torch.randn(2, 3, 9, 11),),
        "attends": (torch.randn(3, 7, 16),),
        "picks": (torch.randn(3, 6), torch.tensor([1, 5, -2, 1])),
    }[name]
    compared(traced(name), *inputs)


def test_opcheck_accepts_the_differentiable_operator() -> None:
    compiled = suture.compile(traced("mlp"), train=True)
    inputs = [
        torch.randn(3, 6, requires_grad=True),
        *(p.detach().clone().requires_grad_() for p in compiled.parameters()),
    ]
    assert set(torch.library.opcheck(compiled.operator, (inputs,)).values()) == {"SUCCESS"}


def test_a_result_that_nothing_uses_has_no_share_in_the_gradient() -> None:
    graph = traced("mixer")
    compiled = suture.compile(graph, train=True)
    tokens, shift = torch.randint(0, 11, (2, 3)), torch.randn(24, requires_grad=True)
    (found,) = torch.autograd.grad(compiled(tokens, shift)[1][:, 0].sum(), [shift])
    (wanted,) = torch.autograd.grad(evaluate(graph, [tokens, shift])[1][:, 0].sum(), [shift])
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)


def test_an_optimiser_moves_what_the_next_call_reads() -> None:
    torch.manual_seed(0)
    compiled = suture.compile(traced("mlp"), train=True)
    plain = suture.to_torch(traced("mlp"))
    x, y = torch.randn(8, 6), torch.randn(8, 3)
    losses = []
    for module in (compiled, plain):
        descent = torch.optim.SGD(module.parameters(), 0.2)
        for _ in range(5):
            descent.zero_grad()
            loss = (module(x) - y).square().mean()
            loss.backward()
            descent.step()
            losses.append(loss.item())
    assert losses[4] < losses[0]
    torch.testing.assert_close(torch.tensor(losses[:5]), torch.tensor(losses[5:]), rtol=1e-3, atol=1e-5)


def test_torch_compile_trains_through_it() -> None:
    graph = traced("mlp")
    compiled = suture.compile(graph, train=True)
    fast = torch.compile(lambda x: compiled(x).square().sum(), fullgraph=True, backend="aot_eager")
    x = torch.randn(3, 6)
    parameters = list(compiled.parameters())
    found = torch.autograd.grad(fast(x), parameters)
    wanted = torch.autograd.grad(compiled(x).square().sum(), parameters)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_an_operator_without_derivative_is_named() -> None:
    class Rounds(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.matrix_exp(x)

    with pytest.raises(SutureError) as caught:
        suture.compile(suture.trace(Rounds(), (torch.eye(3),)), train=True)
    assert caught.value.code is Code.GRADIENT and "opaque" in str(caught.value)


def test_a_gradient_that_was_not_asked_for_is_an_error_and_never_silently_zero() -> None:
    compiled = suture.compile(traced("mlp"))
    x = torch.randn(2, 6, requires_grad=True)
    with pytest.raises(SutureError) as caught:
        compiled(x)
    assert caught.value.code is Code.GRADIENT and "train=True" in str(caught.value)
    with pytest.raises(Exception, match="has no gradient"):
        compiled.operator([x])[0].sum().backward()
    with torch.no_grad():
        assert not compiled(x).requires_grad
    assert not compiled(x.detach()).requires_grad


# bad calls


@pytest.mark.parametrize(
    ("change", "code", "why"),
    [
        (lambda x: x.double(), Code.INPUT, "torch.float64; f32[batch, 6] would be right"),
        (lambda x: x.half(), Code.INPUT, "torch.float16"),
        (lambda x: x.long(), Code.INPUT, "torch.int64"),
        (lambda x: x[:, :5], Code.INPUT, "shape [4, 5]"),
        (lambda x: x[0], Code.INPUT, "shape [6]"),
        (lambda x: x.to_sparse(), Code.INPUT, "sparse"),
        (lambda x: x.to("meta"), Code.DEVICE, "is on meta"),
        (lambda x: x.tolist(), Code.INPUT, "list"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(change: object, code: Code, why: str) -> None:
    compiled = suture.compile(traced("mlp"))
    with pytest.raises(SutureError) as caught:
        compiled(change(torch.randn(4, 6)))  # type: ignore[operator]
    assert caught.value.code is code and why in str(caught.value)


def test_the_operator_itself_checks_what_it_is_given() -> None:
    compiled = suture.compile(traced("mlp"))
    for wrong in (torch.randn(4, 6).double(), torch.randn(4, 5)):
        with pytest.raises(SutureError) as caught:
            compiled.operator([wrong])
        assert caught.value.code is Code.INPUT


def test_inputs_that_are_given_twice_or_not_at_all_are_refused() -> None:
    compiled = suture.compile(traced("mixer"))
    tokens, shift = torch.zeros(1, 2, dtype=torch.long), torch.zeros(24)
    for inputs, named, why in (
        ((tokens, shift), {"shift": shift}, "shift is given twice"), ((tokens,), {}, "1 inputs"), ((tokens,), {"other": shift}, "missing shift"),
        ((tokens, shift, shift), {"shift": shift}, "given twice"),
    ):  # fmt: skip
        with pytest.raises(SutureError) as caught:
            compiled(*inputs, **named)
        assert caught.value.code is Code.INPUT and why in str(caught.value)


def test_strides_do_not_matter() -> None:
    graph = traced("mlp")
    compiled = suture.compile(graph)
    x = torch.randn(4, 6)
    for like in (x.t().contiguous().t(), torch.cat([x, x], 1)[:, :6], x.repeat(2, 1)[::2], x[:1].expand(4, 6)):
        torch.testing.assert_close(compiled(like), reference(graph, like), rtol=1e-4, atol=1e-5)


def test_what_fitted_before_is_no_licence_for_what_does_not() -> None:
    graph = traced("mlp")
    compiled = suture.compile(graph)
    x = torch.randn(4, 6)
    for _ in range(2):
        torch.testing.assert_close(compiled(x), reference(graph, x), rtol=1e-4, atol=1e-5)
    wanted = x.clone().requires_grad_()
    with torch.no_grad():
        torch.testing.assert_close(compiled(wanted), reference(graph, x), rtol=1e-4, atol=1e-5)
    for wrong, code in (
        (x.double(), Code.INPUT), (x[:, :5], Code.INPUT), (x[0], Code.INPUT), (x.to_sparse(), Code.INPUT), (x.tolist(), Code.INPUT),
        (x.to("meta"), Code.DEVICE), (wanted, Code.GRADIENT),
    ):  # fmt: skip
        with pytest.raises(SutureError) as caught:
            compiled(wrong)
        assert caught.value.code is code
    with pytest.raises(SutureError):
        compiled(x, x)
    torch.testing.assert_close(compiled(-x), reference(graph, -x), rtol=1e-4, atol=1e-5)


def test_a_size_that_was_specialised_against_is_refused() -> None:
    compiled = suture.compile(traced("mlp"), specialise={"batch": 4})
    compiled(torch.randn(4, 6))
    with pytest.raises(SutureError) as caught:
        compiled(torch.randn(5, 6))
    assert caught.value.code is Code.INPUT and "f32[4, 6] would be right" in str(caught.value)


def test_an_index_outside_of_a_table_is_an_error_as_in_torch() -> None:
    compiled = suture.compile(traced("mixer"))
    for wrong in (11, -1, 2**40):
        with pytest.raises(SutureError) as caught:
            compiled(torch.tensor([[3, wrong]]), torch.zeros(24))
        assert caught.value.code is Code.INPUT and "embedding" in str(caught.value) and "below 11" in str(caught.value)
    compiled(torch.tensor([[3, 10]]), torch.zeros(24))


def test_a_compiled_graph_for_a_gpu_checks_and_is_an_operator_as_one_for_a_processor() -> None:
    graph = traced("mixer")
    for device in devices():
        compiled = compile_graph_for_cuda(graph, device)
        tokens, shift = torch.tensor([[3, 10]], device=device.place), torch.zeros(24, device=device.place)
        types = [[value.type for value in values] for values in (graph.inputs, graph.outputs)]
        compiled.operator = register(compiled, graph, inputs=types[0], outputs=types[1], what="cuda")
        traced_call = torch.compile(compiled.__call__, fullgraph=True, backend="aot_eager")
        for found in (compiled(tokens, shift), traced_call(tokens, shift)):
            for one, wanted in zip(found, evaluate(graph, [tokens.cpu(), shift.cpu()]), strict=True):
                torch.testing.assert_close(one.cpu(), wanted.detach(), rtol=1e-4, atol=1e-5)
        with pytest.raises(SutureError) as caught:
            compiled(torch.tensor([[3, 11]], device=device.place), shift)
        assert caught.value.code is Code.INPUT and "below 11" in str(caught.value)
        for wrong, code in (
            (shift.double(), Code.INPUT),
            (shift.clone().requires_grad_(), Code.GRADIENT),
            (shift.to("meta"), Code.DEVICE),
        ):
            with pytest.raises(SutureError) as caught:
                compiled(tokens, wrong)
            assert caught.value.code is code


def test_sizes_in_another_order_than_their_symbols_do_not_mix() -> None:
    graph = suture.trace(
        Transposed(),
        (torch.zeros(2, 3), torch.zeros(5, 3)),
        dynamic={"x": {0: "rows", 1: "inner"}, "y": {0: "columns", 1: "inner"}},
    )
    compiled = suture.compile(graph)
    for rows, inner, columns in ((2, 3, 5), (7, 1, 2), (1, 8, 3), (3, 0, 2)):
        x, y = torch.randn(rows, inner), torch.randn(columns, inner)
        torch.testing.assert_close(compiled(x, y), evaluate(graph, [x, y])[0])


class Transposed(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (torch.exp(x[:, None, :]) * torch.tanh(y[None, :, :])).sum(-1)


def test_calls_from_several_threads_do_not_meet() -> None:
    graph = traced("mlp")
    compiled = suture.compile(graph)
    inputs = [torch.randn(3, 6) for _ in range(4)]
    wrong: list[int] = []

    def work(k: int) -> None:
        expected = reference(graph, inputs[k])
        for _ in range(50):
            if not torch.allclose(compiled(inputs[k]), expected, rtol=1e-4, atol=1e-5):
                wrong.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# the machine


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache of its own."""
    monkeypatch.setenv("SUTURE_CACHE", str(tmp_path / "cache"))
    return tmp_path


def other(number: int) -> Graph:
    """A graph that no cache has seen."""
    return suture.trace(nn.Sequential(nn.GELU(), nn.LayerNorm(number)), (torch.zeros(2, number),))


def test_no_compiler_is_an_error_that_says_how_to_get_one(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(SutureError) as caught:
        suture.compile(other(5))
    assert caught.value.code is Code.COMPILER and "install g++" in str(caught.value)


def test_a_compiler_that_fails_is_quoted_with_the_source_beside(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = alone / "compiler"
    fake.write_text(
        "#!/bin/sh\ncase \"$*\" in *--version*) echo fake 1.0; exit 0;; esac\necho 'note: first'\necho 'x.cpp:3:7: error: it is Monday' >&2\nexit 1\n"
    )
    fake.chmod(0o755)
    for compiler, why in ((str(fake), "error: it is Monday"), (shutil.which("false") or "false", "no message")):
        monkeypatch.setenv("CXX", compiler)
        with pytest.raises(SutureError) as caught:
            suture.compile(other(6))
        error = caught.value
        assert error.code is Code.COMPILER and why in str(error) and "\n" not in str(error)
        assert Path(error.where).suffix == ".cpp" and "traversal_0" in Path(error.where).read_text()


def test_a_cache_that_cannot_be_written_is_an_error_with_a_remedy(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (alone / "file").write_text("x")
    monkeypatch.setenv("SUTURE_CACHE", str(alone / "file"))  # below a file there can be no folder, whoever asks
    with pytest.raises(SutureError) as caught:
        suture.compile(other(7))
    assert caught.value.code is Code.WRITE and "SUTURE_CACHE" in str(caught.value)


def test_a_cache_that_is_full_is_an_error_and_leaves_no_half_library(
    alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.replace

    def full(self: Path, target: object) -> Path:
        if str(target).endswith(".so"):
            raise OSError(28, os.strerror(28))
        return real(self, target)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(SutureError) as caught:
        suture.compile(other(8))
    assert caught.value.code is Code.WRITE and "No space left" in str(caught.value)
    assert not list((alone / "cache").rglob("*.so"))
    monkeypatch.undo()
    x = torch.randn(2, 8)
    torch.testing.assert_close(suture.compile(other(8))(x), reference(other(8), x), rtol=1e-4, atol=1e-5)


def test_registered_names_are_torch_names() -> None:
    graph = traced("mlp")
    graph.name = "2 strange/name é"
    compiled = suture.compile(graph)
    assert str(compiled.operator).startswith(f"{compiled_operator.NAMESPACE}.net_2_strange_name_")


def test_a_target_that_is_not_there() -> None:
    graph = suture.trace(nn.ReLU(), torch.randn(3))
    with pytest.raises(SutureError) as caught:
        suture.compile(graph, target="tpu")
    assert caught.value.code is Code.OPTION and "cpp and cuda are known" in str(caught.value)
