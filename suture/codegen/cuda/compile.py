"""From CUDA C++ text to a cubin: NVRTC where it is, nvcc else; what was made is kept.

NVRTC comes with torch's CUDA builds and with the extra `cuda`, as a library in a wheel of NVIDIA's; it needs no toolkit and no GPU. The printed text
includes no header, so the library is all that is needed.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from suture.ir.errors import Code, SutureError
from suture.ir.files import cache_folder

FLAGS = ("--std=c++17", "--ptxas-options=-v")


class CudaCompiler(Protocol):
    """What turns text into a cubin, or into PTX for a processor that it does not know."""

    @property
    def version(self) -> str:
        """What distinguishes its results from another's."""

    def architectures(self) -> tuple[int, ...]:
        """The compute capabilities, times ten, that it knows, in order."""

    def compile(self, source: str, target: str, folder: Path) -> tuple[bytes | None, str]:
        """The image, None if the text is refused, and what the compiler said.

        :param target: `sm_90` for a cubin, `compute_90` for PTX
        :param folder: where intermediate files may be
        """


@dataclass(frozen=True)
class Module:
    """A compiled module.

    :param image: a cubin, or PTX
    :param log: what the compiler said: how many registers and how much memory each kernel takes
    """

    image: bytes
    log: str


def compile_cuda_text(source: str, architecture: int, compiler: CudaCompiler | None = None) -> Module:
    """A module for GPUs of a compute capability; from the cache, if it was compiled before.

    :param architecture: compute capability times ten: 90 for 9.0
    :raises SutureError: COMPILER, if there is none or it refuses the text; WRITE, if the cache cannot be written
    """
    compiler = compiler or find_cuda_compiler()
    target = target_of(architecture, compiler)
    key = "\0".join([source, target, compiler.version, *FLAGS])
    folder = cache_folder("kernels")
    kept = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.{'cubin' if target.startswith('sm_') else 'ptx'}"
    try:
        if kept.exists():
            return Module(kept.read_bytes(), kept.with_suffix(".log").read_text(encoding="utf-8"))
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as name:
            image, log = compiler.compile(source, target, Path(name))
            if image is None:
                text = kept.with_suffix(".cu")
                text.write_text(source, encoding="utf-8")
                raise _refused(compiler, log, text)
            # the log first: who finds an image finds its log
            for made, data in ((kept.with_suffix(".log"), log.encode()), (kept, image)):
                part = Path(name) / "part"
                part.write_bytes(data)
                part.replace(made)  # whole or not there, whoever else compiles the same
    except OSError as error:
        raise SutureError(
            Code.WRITE, f"compiled kernels cannot be kept: {error.strerror or error}", where=str(folder),
            remedy="free some space, or set SUTURE_CACHE to a folder that may be written",
        ) from None  # fmt: skip
    return Module(image, log)


def target_of(architecture: int, compiler: CudaCompiler) -> str:
    """What to compile for: the GPU itself, or PTX for the newest before it, which the driver translates.

    :raises SutureError: COMPILER, if the compiler knows no such GPU any more
    """
    known = compiler.architectures()
    if architecture in known:
        return f"sm_{architecture}"
    older = [each for each in known if each <= architecture]
    if not older:
        raise SutureError(
            Code.COMPILER, f"{compiler.version} compiles for compute capability {known[0] / 10:.1f} and above", where=f"sm_{architecture}",
            remedy="use an older CUDA toolkit, or target='cpp'",
        )  # fmt: skip
    return f"compute_{max(older)}"


def _refused(compiler: CudaCompiler, said: str, text: Path) -> SutureError:
    lines = [line for line in said.splitlines() if "error" in line.lower()] or said.splitlines() or ["no message"]
    what = f"{compiler.version.split()[0]} refuses the generated code: {lines[0].strip()[:300]}"
    return SutureError(Code.COMPILER, what, where=str(text), remedy="please report this")


@functools.cache
def find_cuda_compiler() -> CudaCompiler:
    """The compiler of this machine: NVRTC, else nvcc.

    :raises SutureError: COMPILER, with how to get one
    """
    for library in nvrtc_libraries():
        try:
            return Nvrtc(load_nvrtc(library))
        except OSError:
            continue
    path = find_nvcc()
    if path:
        return Nvcc(path)
    remedy = (
        "pip install 'suture[cuda]' brings NVRTC; torch's CUDA builds bring it too; or install the CUDA toolkit (nvcc)"
    )
    raise SutureError(Code.COMPILER, "there is no compiler for CUDA", remedy=remedy)


def find_nvcc() -> str | None:
    """The path of nvcc: on PATH, or in `CUDA_HOME`."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    return shutil.which("nvcc") or shutil.which("nvcc", path=str(Path(home) / "bin"))


def nvrtc_libraries() -> Iterator[str]:
    """Where NVRTC may be: in torch's own folder, in NVIDIA's wheels, among the system's libraries; newer ones first."""
    found: list[Path] = []
    for package, folders in (("torch", ("lib",)), ("nvidia", ("*/lib", "*/bin", "*/bin/x86_64"))):
        spec = importlib.util.find_spec(package)
        for place in (spec.submodule_search_locations or ()) if spec else ():
            for folder in folders:
                for pattern in ("libnvrtc.so*", "libnvrtc-*.so*", "nvrtc64_*.dll"):
                    found += [
                        each
                        for each in Path(place).glob(f"{folder}/{pattern}")
                        if not re.search("alt|builtins", each.name)
                    ]
    yield from (str(each) for each in sorted(found, key=_version_of, reverse=True))
    yield from ("libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so")


def load_nvrtc(path: str) -> ctypes.CDLL:
    """Load NVRTC; the library of its built-in functions comes first, which it looks for by name alone.

    :raises OSError: if it does not load
    """
    for pattern in ("libnvrtc-builtins.so*", "nvrtc-builtins64_*.dll"):
        for builtins in sorted(Path(path).parent.glob(pattern)) if Path(path).is_absolute() else ():
            ctypes.CDLL(str(builtins))
    return ctypes.CDLL(path)


def _version_of(library: Path) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", library.name.removesuffix(".dll").replace("nvrtc64", ""))))


class Nvrtc:
    """NVRTC's functions.

    :param library: `libnvrtc`, loaded
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        major, minor = ctypes.c_int(), ctypes.c_int()
        library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
        self._version = f"NVRTC {major.value}.{minor.value}"

    @property
    def version(self) -> str:
        """What distinguishes its results from another's."""
        return self._version

    @functools.cache  # noqa: B019  (there is one for the process)
    def architectures(self) -> tuple[int, ...]:
        """The compute capabilities that it knows."""
        count = ctypes.c_int()
        self._library.nvrtcGetNumSupportedArchs(ctypes.byref(count))
        found = (ctypes.c_int * count.value)()
        self._library.nvrtcGetSupportedArchs(found)
        return tuple(sorted(found))

    def compile(self, source: str, target: str, folder: Path) -> tuple[bytes | None, str]:
        """The image and the log."""
        library, program = self._library, ctypes.c_void_p()
        text, name = ctypes.c_char_p(source.encode()), ctypes.c_char_p(b"kernel.cu")
        library.nvrtcCreateProgram(ctypes.byref(program), text, name, ctypes.c_int(0), None, None)
        try:
            options = [f"--gpu-architecture={target}".encode(), *(flag.encode() for flag in FLAGS)]
            array = (ctypes.c_char_p * len(options))(*options)
            failed = library.nvrtcCompileProgram(program, ctypes.c_int(len(options)), array)
            log = self._text(program, "nvrtcGetProgramLogSize", "nvrtcGetProgramLog").rstrip(b"\0").decode()
            if failed:
                return None, log
            kind = "CUBIN" if target.startswith("sm_") else "PTX"
            return self._text(program, f"nvrtcGet{kind}Size", f"nvrtcGet{kind}"), log
        finally:
            library.nvrtcDestroyProgram(ctypes.byref(program))

    def _text(self, program: ctypes.c_void_p, size_of: str, get: str) -> bytes:
        size = ctypes.c_size_t()
        getattr(self._library, size_of)(program, ctypes.byref(size))
        text = ctypes.create_string_buffer(size.value)
        getattr(self._library, get)(program, text)
        return text.raw


@dataclass(frozen=True)
class Nvcc:
    """The toolkit's compiler, as a program."""

    path: str

    @property
    def version(self) -> str:
        """What distinguishes its results from another's."""
        return f"nvcc {_said(self.path, '--version').splitlines()[-1]}"

    def architectures(self) -> tuple[int, ...]:
        """The compute capabilities that it knows."""
        return tuple(sorted(int(each) for each in re.findall(r"compute_(\d+)\b", _said(self.path, "--list-gpu-arch"))))

    def compile(self, source: str, target: str, folder: Path) -> tuple[bytes | None, str]:
        """The image and the messages."""
        text, made = folder / "kernel.cu", folder / "kernel.image"
        text.write_text(source, encoding="utf-8")
        kind = "-cubin" if target.startswith("sm_") else "-ptx"
        done = subprocess.run(
            [self.path, *FLAGS, f"-arch={target}", kind, str(text), "-o", str(made)], capture_output=True, text=True, check=False
        )  # fmt: skip
        return (None if done.returncode else made.read_bytes()), done.stderr


@functools.cache
def _said(program: str, option: str) -> str:
    return subprocess.run([program, option], capture_output=True, text=True, check=False).stdout
