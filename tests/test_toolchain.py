"""From C++ text to a library: what is kept between runs, and what becomes of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from suture.codegen import toolchain

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

    def run(compiler: str, sources: Sequence[str], flags: Sequence[str], target: Path) -> None:
        compile(compiler, sources, flags, target)
        if not made:
            target.write_bytes(target.read_bytes()[:200])
        made.append(target)

    return run
