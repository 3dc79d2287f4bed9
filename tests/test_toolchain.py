"""From C++ text to a library: what is kept between runs, and what becomes of it."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

import suture
from suture.backends.compiled import CompiledGraph
from suture.codegen import toolchain
from suture.codegen.cpp.printer import print_cpp
from suture.codegen.cpp.products import split_products
from suture.codegen.program import lower
from suture.codegen.runner import build_files, print_program
from suture.ir.errors import Code, SutureError
from suture.ir.kernel_text import parse_kernel

pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++"))), reason="no C++ compiler on this machine"
)


def test_a_library_that_was_cut_short_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUTURE_CACHE", str(tmp_path))
    source = 'extern "C" int answer() { return 42; }'
    (tmp_path / "kernels").mkdir()
    whole = toolchain.build(source)
    assert whole.answer() == 42
    (library,) = (tmp_path / "kernels").glob("*.so")
    torn = 'extern "C" int answer() { return 43; }'
    monkeypatch.setattr(toolchain, "_compile", _tearing(toolchain._compile))
    assert toolchain.build(torn).answer() == 43
    assert library.exists()


def _tearing(compile: Callable[..., None]) -> Callable[..., None]:
    """A compiler whose first result is cut in half."""
    made: list[Path] = []

    def run(compiler: str, sources: Sequence[str], shared: Sequence[str], flags: Sequence[str], target: Path) -> None:
        compile(compiler, sources, shared, flags, target)
        if not made:
            target.write_bytes(target.read_bytes()[:200])
        made.append(target)

    return run


def test_what_libraries_share_is_compiled_once_and_again_where_it_was_cut_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUTURE_CACHE", str(tmp_path))
    shared = '__attribute__((visibility("hidden"))) int shared() { return 7; }'
    first, second, third = (
        f'int shared(); extern "C" int answer() {{ return shared() + {number}; }}' for number in range(3)
    )
    assert toolchain.build(first, shared=[shared]).answer() == 7
    (kept,) = (tmp_path / "kernels").glob("*.o")
    made = kept.stat().st_mtime_ns
    assert toolchain.build(second, shared=[shared]).answer() == 8
    assert kept.stat().st_mtime_ns == made
    kept.write_bytes(kept.read_bytes()[:100])
    assert toolchain.build(third, shared=[shared]).answer() == 9
    assert list((tmp_path / "kernels").glob("*.o")) == [kept]


def test_a_text_that_is_refused_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUTURE_CACHE", str(tmp_path))
    good, bad = 'extern "C" int good() { return 0; }', 'extern "C" int bad() { return nothing; }'
    for sources, shared in (((bad,), ()), ((good, bad), ()), ((good,), (bad,))):
        with pytest.raises(SutureError) as caught:
            toolchain.build(*sources, shared=shared)
        assert caught.value.code == Code.COMPILER
        assert caught.value.where is not None and Path(caught.value.where).read_text() == bad
    assert not list((tmp_path / "kernels").glob("*.so"))


PRODUCT = """kernel product(m: size, a: f32[m, 8], b: f32[8, 16], y: f32[m, 16])
  grid row < (m + 3) // 4
  thread sum: f32[4, 1]
  sum = a[row * 4 + i, k] @ b[k, j] for i < min(4, m - row * 4), j < 16, k < 8 over 16 across 16
  each t < 16:
    for r in 0 .. min(4, m - row * 4):
      y[row * 4 + r, t] = sum[r, 0]OTHER
"""


def test_kernels_with_the_same_product_share_its_functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUTURE_CACHE", str(tmp_path))
    a, b = torch.randn(6, 8), torch.randn(8, 16)
    for other, factor in (("", 1.0), (" + sum[r, 0]", 2.0)):
        text = print_cpp(parse_kernel(PRODUCT.replace("OTHER", other)))
        (apart,), (functions,) = split_products([text])
        assert functions.count("K_INSTANCE(4)") == 2 and "K_INSTANCE(5)" not in functions
        assert apart.endswith(text)
        y = torch.empty(6, 16)
        build_files(text).product(ctypes.c_int64(6), *(ctypes.c_void_p(each.data_ptr()) for each in (a, b, y)))
        torch.testing.assert_close(y, factor * (a @ b))
    assert len(list((tmp_path / "kernels").glob("*.o"))) == 1


def test_long_programs_come_in_files_and_short_ones_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.Softmax(-1), torch.nn.LayerNorm(3))
    inputs = torch.randn(4, 5)
    program = lower(suture.trace(net, inputs), "cpp")
    assert len(program.kernels) >= 2
    assert len(print_program(program, 8)) == 1
    monkeypatch.setattr("suture.codegen.runner._PAYS", 1)
    files = print_program(program, 2)
    assert len(files) == 2
    found = CompiledGraph(program, build_files(*files))(inputs)
    torch.testing.assert_close(found, net(inputs))
