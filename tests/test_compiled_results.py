"""The memory of large results is used again when nobody holds it, and never while somebody does."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import suture
from suture.backends.compiled import CompiledGraph

pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++"))), reason="no C++ compiler on this machine"
)


class _Both(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x * 2.0 + 1.0, x.softmax(1)


@pytest.fixture(scope="module")
def compiled() -> CompiledGraph:
    made = suture.compile(suture.trace(_Both(), (torch.zeros(200, 256),), dynamic={"x": {0: "n"}}))
    assert isinstance(made, CompiledGraph)
    return made


def test_memory_that_nobody_holds_is_used_again(compiled: CompiledGraph) -> None:
    x = torch.randn(300, 256)
    places = {tuple(each.data_ptr() for each in compiled(x)) for _ in range(6)}
    assert len(places) == 1
    made = compiled(x)
    assert all(each.is_contiguous() and each._base is None and each._version <= 1 for each in made)


@pytest.mark.parametrize(
    "hold",
    [lambda y: y, lambda y: y.view(-1)[5:], lambda y: y.detach(), lambda y: y.numpy(), lambda y: y.untyped_storage(), lambda y: torch.utils.dlpack.from_dlpack(y)],
)  # fmt: skip
def test_memory_that_somebody_holds_is_not(compiled: CompiledGraph, hold: Callable[[Tensor], object]) -> None:
    first, second = torch.randn(200, 256), torch.randn(200, 256)
    y, _ = compiled(first)
    place, expected, held = y.data_ptr(), y.clone(), hold(y)
    seen = y.view(-1)[:0] if isinstance(held, torch.UntypedStorage) else None
    del y
    for x in (second, second, first):
        later, _ = compiled(x)
        assert later.data_ptr() != place
        torch.testing.assert_close(later, x * 2.0 + 1.0)
    if isinstance(held, torch.UntypedStorage):
        assert seen is not None
        held = torch.empty(0).set_(held, 0, (200, 256), (256, 1))
    found = torch.as_tensor(held).reshape(-1)
    assert torch.equal(found, expected.view(-1)[-found.numel() :])


def test_a_result_that_processes_share_is_let_go(compiled: CompiledGraph) -> None:
    x = torch.randn(220, 256)
    y, _ = compiled(x)
    y.share_memory_()
    place = y.data_ptr()
    del y
    assert all(compiled(x)[0].data_ptr() != place for _ in range(3))


def test_results_may_be_what_is_given_next_or_of_another_size(compiled: CompiledGraph) -> None:
    y = x = torch.randn(260, 256)
    for _ in range(5):
        y = compiled(y)[0]
    torch.testing.assert_close(y, 32.0 * x + 31.0)
    for rows in (200, 260, 0, 200):
        for made, wanted in zip(compiled(x[:rows]), _Both()(x[:rows]), strict=True):
            torch.testing.assert_close(made, wanted)
    y.resize_(100, 256)
    del y
    torch.testing.assert_close(compiled(x)[0], 2.0 * x + 1.0)
