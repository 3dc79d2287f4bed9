"""From C++ text to a library: the compiler is found, run once per text, and what it made is kept.

Libraries are cached by the hash of source, compiler, flags and processor. Nothing of torch is compiled in: a library exports plain C functions,
which `ctypes` calls.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from suture.ir.errors import Code, SutureError
from suture.ir.files import cache_folder

FLAGS = (
    "-std=c++17", "-O3", "-march=native", "-fPIC", "-shared", "-fopenmp",
    # what -ffast-math allows without what would change this process's treatment of small numbers, or lose NaN and infinity
    "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math", "-freciprocal-math",
    "-fno-thread-jumps",  # a choice between numbers stays one: as branches, two in a row cost four masks
)  # fmt: skip
CHECKED = ("-std=c++17", "-O1", "-fPIC", "-shared")


def build(*sources: str, shared: Sequence[str] = (), flags: Sequence[str] = FLAGS) -> ctypes.CDLL:
    """Compile C++ texts side by side into one library and load it; from the cache, if it was compiled before.

    :param shared: texts that other libraries have as well: their objects are kept, too
    :raises SutureError: COMPILER, if there is none or it refuses a text; WRITE, if the cache cannot be written
    """
    compiler, folder = find_compiler(), _made_folder()
    target = folder / f"{_key([*sources, *shared], compiler, flags)}.so"
    if not target.exists():
        _compile(compiler, sources, shared, flags, target)
    try:
        return _load(str(target))
    except OSError:  # cut short, by a full disk or a machine that stopped: the same text makes it again
        target.unlink(missing_ok=True)
        _compile(compiler, sources, shared, flags, target)
        return _load(str(target))


def describe_target() -> str:
    """The compiler and the processor that code is made for here: what measurements depend on."""
    compiler = find_compiler()
    return f"{compiler} {_version(compiler).splitlines()[:1]} {_processor()}"


def find_compiler() -> str:
    """The C++ compiler: `CXX`, else g++, else clang++.

    :raises SutureError: COMPILER, with how to get one
    """
    for name in (os.environ.get("CXX", ""), "g++", "clang++"):
        found = shutil.which(name) if name else None
        if found:
            return found
    remedy = "install g++ (apt install g++), clang (xcode-select --install), or set CXX"
    raise SutureError(Code.COMPILER, "there is no C++ compiler", remedy=remedy)


def _made_folder() -> Path:
    """The folder of the libraries, made where it is not there."""
    folder = cache_folder("kernels")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from None
    return folder


def _key(texts: Sequence[str], compiler: str, flags: Sequence[str]) -> str:
    key = "\0".join([*texts, compiler, *flags, _processor(), _version(compiler)])
    return hashlib.sha256(key.encode()).hexdigest()[:32]


def _compile(compiler: str, sources: Sequence[str], shared: Sequence[str], flags: Sequence[str], target: Path) -> None:
    """One text becomes a library in one run; several become objects side by side, and these a library."""
    kept = [target.parent / f"{_key([text], compiler, flags)}.o" for text in shared]
    reused = [path for path in kept if path.exists()]
    try:
        with tempfile.TemporaryDirectory(dir=target.parent) as name:
            folder = Path(name)
            parts = [folder / f"{number}.cpp" for number in range(len(sources))]
            for part, source in zip(parts, sources, strict=True):
                part.write_text(source, encoding="utf-8")
            if len(parts) + len(kept) > 1:
                made = [part.with_suffix(".o") for part in parts]
                for path, text in zip(kept, shared, strict=True):
                    if path not in reused:
                        parts.append(folder / f"{path.stem}.cpp")
                        parts[-1].write_text(text, encoding="utf-8")
                compiling = [compiler, *(flag for flag in flags if flag != "-shared"), "-c"]
                with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
                    list(
                        pool.map(
                            lambda part: _run([*compiling, str(part), "-o", f"{part.with_suffix('.o')}"], target), parts
                        )
                    )
                for path in kept:
                    if path not in reused:
                        (folder / f"{path.stem}.o").replace(path)
                parts = [*made, *kept]
            library = folder / "kernels.so"
            _run([compiler, *flags, *map(str, parts), "-o", str(library), "-lm"], target)
            library.replace(target)  # whole or not there, whoever else compiles the same
    except OSError as error:
        raise _unwritable(target.parent, error) from None
    except SutureError:
        if not reused:
            raise
        for path in reused:  # one of them may have been cut short
            path.unlink(missing_ok=True)
        _compile(compiler, sources, shared, flags, target)


def _run(command: Sequence[str], target: Path) -> None:
    """Run a compiler; the text that it refuses is kept beside where the library would be."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        kept = target.with_suffix(".cpp")
        texts = [part for part in command if part.endswith(".cpp")]
        if texts:
            shutil.copyfile(texts[0], kept)
        raise _refused(command[0], done.stderr, kept if texts else target)


def _refused(compiler: str, output: str, kept: Path) -> SutureError:
    lines = [line for line in output.splitlines() if "error" in line.lower()] or output.splitlines() or ["no message"]
    return SutureError(
        Code.COMPILER, f"{Path(compiler).name} refuses the generated code: {lines[0].strip()[:300]}", where=str(kept), remedy="please report this"
    )  # fmt: skip


def _unwritable(folder: Path, error: OSError) -> SutureError:
    remedy = "free some space, or set SUTURE_CACHE to a folder that may be written"
    return SutureError(
        Code.WRITE, f"compiled kernels cannot be kept: {error.strerror or error}", where=str(folder), remedy=remedy
    )


@functools.cache
def _load(path: str) -> ctypes.CDLL:
    import torch  # noqa: F401  (its OpenMP runtime comes first, so that both share one pool of threads)

    return ctypes.CDLL(path)


@functools.cache
def _version(compiler: str) -> str:
    return subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout


@functools.cache
def _processor() -> str:
    """What `-march=native` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return "\n".join(line for line in dict.fromkeys(lines) if line.startswith(("model name", "flags")))
    except OSError:
        return platform.processor() + platform.machine()
