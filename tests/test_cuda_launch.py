"""Driver, compilers and launches without a GPU: arguments arrive as they were given, and what goes wrong is said with its remedy."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import cuda_stand_in
import pytest
import torch
from cuda_stand_in import State, compile_stand_in, library, state
from kernels import GEMM, NEIGHBOURS, SOFTMAX

from suture.codegen.cuda import compile as cuda_compile
from suture.codegen.cuda import driver as cuda_driver
from suture.codegen.cuda import launch as cuda_launch
from suture.codegen.cuda.compile import Module, Nvcc, Nvrtc, compile_cuda_text, find_nvcc, load_nvrtc, target_of
from suture.codegen.cuda.driver import Driver, FunctionAttribute
from suture.codegen.cuda.launch import Device, find_device
from suture.codegen.cuda.printer import print_cuda
from suture.ir.errors import Code, SutureError
from suture.ir.kernel_text import parse_kernel

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++"))), reason="no C++ compiler on this machine"
)
pytestmark = needs_compiler

_SCALED = """\
kernel scaled(n: size, m: size, a: f32, b: f64, c: i32, d: i64, x: f32[n, m], y: f64[n, m])
  grid block < n
  each t < 32:
    for j in 0 .. (m - t + 31) // 32:
      y[block, j * 32 + t] = cast(f64, x[block, j * 32 + t] * a) + b + cast(f64, c) + cast(f64, d)
"""


@pytest.fixture
def gpu() -> Device:
    return cuda_stand_in.device()


@contextmanager
def refused(code: Code, match: str) -> Iterator[pytest.ExceptionInfo[SutureError]]:
    with pytest.raises(SutureError, match=match) as caught:
        yield caught
    assert caught.value.code is code


def test_sizes_numbers_and_addresses_arrive_as_they_were_given(gpu: Device) -> None:
    kernel = parse_kernel(_SCALED)
    x, y = torch.randn(5, 40), torch.zeros(5, 40, dtype=torch.float64)
    gpu.load([kernel])["scaled"](x, y, a=0.25, b=1e-12, c=-(2**31), d=2**40)
    assert torch.equal(y, (x * 0.25).double() + 1e-12 + -(2.0**31) + 2.0**40)
    assert (state().blocks, state().threads, state().shared, state().launches) == (5, 32, 0, 1)


def test_launches_go_to_the_stream_that_torch_works_on() -> None:
    seen: list[torch.device] = []

    def stream(place: torch.device) -> int:
        seen.append(place)
        return 0x1234

    gpu = Device(torch.device("cpu"), Driver(library()), stream, compile_stand_in)
    gpu.load([parse_kernel(NEIGHBOURS.text)])["neighbours"](*NEIGHBOURS.make(2, 0, 0))
    assert state().stream == 0x1234
    assert seen == [torch.device("cpu")]


def test_nothing_is_launched_for_nothing(gpu: Device) -> None:
    gpu.load([parse_kernel(NEIGHBOURS.text)])["neighbours"](*NEIGHBOURS.make(0, 0, 0))
    assert state().launches == 0
    assert gpu.load([]) == {}


def test_several_kernels_are_one_module() -> None:
    compiled: list[str] = []

    def compile(source: str, architecture: int) -> Module:
        compiled.append(source)
        assert architecture == 90
        return compile_stand_in(source, architecture)

    kernels = [parse_kernel(each.text) for each in (NEIGHBOURS, SOFTMAX, GEMM)]
    loaded = cuda_stand_in.device(compile=compile).load(kernels)
    assert list(loaded) == ["neighbours", "softmax_rows", "gemm"]
    assert len(compiled) == 1


def test_more_blocks_than_a_launch_has(gpu: Device) -> None:
    fn = gpu.load([parse_kernel(GEMM.text)])["gemm"]
    with refused(Code.DEVICE, r"9765625000000 blocks.*at most 2147483647: split the input"):
        fn.launch([10**8, 10**8, 4], [0, 0, 0])
    assert state().launches == 0


def test_more_shared_memory_than_a_block_has(gpu: Device) -> None:
    kernel = parse_kernel(
        "kernel large(n: size, x: f32[n])\n  grid i < n\n  shared s: f32[60000]\n  each t < 1:\n    s[0] = f32(1.0)\n"
        "  each t < 1:\n    x[i] = s[0]\n"
    )
    with refused(Code.DEVICE, "a block takes 240000 bytes of shared memory.*has 232448: choose smaller tiles"):
        gpu.load([kernel])


def test_tensors_that_do_not_fit_are_refused_before_anything_runs(gpu: Device) -> None:
    fn = gpu.load([parse_kernel(GEMM.text)])["gemm"]
    a, b, c = torch.randn(3, 4), torch.randn(4, 5), torch.zeros(3, 5)
    for wrong, what in (
        ((a, b), "2 tensors"),
        ((a, b, c.double()), "c is torch.float64 of rank 2"),
        ((a, b.t().contiguous().t(), c), "not contiguous"),
        ((a, torch.randn(3, 5), c), "b has 3 where 4 is right"),
        ((a, b, c[0]), "c is torch.float32 of rank 1"),
    ):
        with refused(Code.INPUT, what):
            fn(*wrong)
    with refused(Code.DEVICE, r"c of kernel gemm is on meta.*it runs on cpu: move it there with .to\('cpu'\)"):
        fn(a, b, c.to("meta"))
    scaled = gpu.load([parse_kernel(_SCALED)])["scaled"]
    with refused(Code.INPUT, "the number b is missing"):
        scaled(torch.randn(1, 1), torch.zeros(1, 1, dtype=torch.float64), a=1.0)
    assert state().launches == 0


def test_what_the_driver_refuses_is_said_in_its_words(gpu: Device) -> None:
    fn = gpu.load([parse_kernel(NEIGHBOURS.text)])["neighbours"]
    state().fails = 2
    with refused(
        Code.DEVICE, r"kernel neighbours: cuLaunchKernel: unspecified launch failure \(719\).*CUDA_LAUNCH_BLOCKING"
    ):
        fn(*NEIGHBOURS.make(2, 0, 0))
    state().fails = 0
    driver = gpu.driver
    with refused(Code.DEVICE, r"cuModuleLoadData: .*no-such-file.*\(200\)"):
        driver.load(b"/no-such-file.so")
    module = driver.load(compile_stand_in(print_cuda(parse_kernel(NEIGHBOURS.text)), 90).image)
    with refused(Code.DEVICE, "cuModuleGetFunction: named symbol not found"):
        driver.function(module, "absent")
    function = driver.function(module, "neighbours")
    assert driver.function_attribute(function, FunctionAttribute.REGISTERS) == 40
    assert driver.occupancy(function, 256, 0) == 8
    assert driver.name(0) == "Stand-in"


def test_no_gpu_and_no_gpu_of_that_number() -> None:
    current: State = state()
    current.fails = 1
    with refused(Code.DEVICE, r"cuInit: no CUDA-capable device is detected \(100\).*nvidia-smi"):
        Driver(library())
    current.fails, current.devices = 0, 1
    driver = Driver(library())
    with refused(Code.DEVICE, "there is no GPU 3.*the GPUs are 0 to 0"):
        driver.device(3)
    current.devices = 0
    with refused(Code.DEVICE, "there is no GPU 0.*no GPU is visible"):
        driver.device(0)
    current.devices = 1


def test_no_driver_and_no_cuda_in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> ctypes.CDLL:
        raise OSError(name)

    monkeypatch.setattr(cuda_driver.ctypes, "CDLL", absent)
    cuda_driver.find_driver.cache_clear()
    with refused(Code.DEVICE, "there is no CUDA driver on this machine.*target='cpp'"):
        find_device()
    with refused(Code.DEVICE, "cpu is no CUDA device"):
        find_device("cpu")
    monkeypatch.undo()
    monkeypatch.setattr(cuda_launch, "find_driver", lambda: Driver(library()))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with refused(Code.DEVICE, "sees no GPU.*torch's CUDA build"):
        find_device()


@dataclass
class Recorder:
    """A compiler that keeps what it was asked, and answers what it is told."""

    answer: bytes | None = b"image"
    known: tuple[int, ...] = (80, 90, 100)
    asked: list[str] = field(default_factory=list)
    version: str = "recorder 1.0"

    def architectures(self) -> tuple[int, ...]:
        return self.known

    def compile(self, source: str, target: str, folder: Path) -> tuple[bytes | None, str]:
        assert folder.is_dir()
        self.asked.append(target)
        return self.answer, "note: nothing\nkernel.cu(7): error: it is wrong\n"


def test_modules_are_kept_by_source_processor_and_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUTURE_CACHE", str(tmp_path))
    recorder = Recorder()
    for _ in range(2):
        assert compile_cuda_text("text", 90, recorder) == Module(
            b"image", "note: nothing\nkernel.cu(7): error: it is wrong\n"
        )
    assert recorder.asked == ["sm_90"]
    compile_cuda_text("text", 80, recorder)
    compile_cuda_text("other", 90, recorder)
    recorder.version = "recorder 2.0"
    compile_cuda_text("text", 90, recorder)
    assert recorder.asked == ["sm_90", "sm_80", "sm_90", "sm_90"]
    assert {each.suffix for each in (tmp_path / "kernels").iterdir()} == {".cubin", ".log"}


def test_a_newer_gpu_gets_ptx_and_an_older_one_is_refused() -> None:
    assert target_of(100, Recorder()) == "sm_100"
    assert target_of(120, Recorder()) == "compute_100"
    assert target_of(86, Recorder()) == "compute_80"
    with refused(Code.COMPILER, "recorder 1.0 compiles for compute capability 8.0 and above.*older CUDA toolkit"):
        target_of(75, Recorder())


def test_a_compiler_that_refuses_is_quoted_and_the_source_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUTURE_CACHE", str(tmp_path))
    with refused(Code.COMPILER, r"recorder refuses the generated code: kernel.cu\(7\): error: it is wrong") as caught:
        compile_cuda_text("the text", 90, Recorder(answer=None))
    assert Path(caught.value.where).read_text(encoding="utf-8") == "the text"


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder", encoding="utf-8")
    monkeypatch.setenv("SUTURE_CACHE", str(blocked))
    with refused(Code.WRITE, "set SUTURE_CACHE"):
        compile_cuda_text("text", 90, Recorder())


def test_no_compiler_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_compile, "nvrtc_libraries", lambda: iter(["/no/libnvrtc.so.13"]))
    monkeypatch.setattr(cuda_compile, "find_nvcc", lambda: None)
    cuda_compile.find_cuda_compiler.cache_clear()
    with refused(Code.COMPILER, r"there is no compiler for CUDA.*suture\[cuda\]"):
        cuda_compile.find_cuda_compiler()


def test_nvrtc_comes_before_nvcc_and_newer_before_older(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in (
        "cuda_nvrtc/lib/libnvrtc.so.12",
        "cu13/lib/libnvrtc.so.13",
        "cu13/lib/libnvrtc.alt.so.13",
        "cu13/lib/libnvrtc-builtins.so.13.0",
    ):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).touch()

    class Spec:
        submodule_search_locations = [str(tmp_path)]

    monkeypatch.setattr(
        cuda_compile.importlib.util, "find_spec", lambda package: Spec() if package == "nvidia" else None
    )
    found = list(cuda_compile.nvrtc_libraries())
    assert [Path(each).name for each in found[:2]] == ["libnvrtc.so.13", "libnvrtc.so.12"]
    assert found[2:] == ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"]


def _compilers() -> list[object]:
    """What of the real ones is here."""
    found: list[object] = []
    for path in cuda_compile.nvrtc_libraries():
        try:
            found.append(Nvrtc(load_nvrtc(path)))
            break
        except OSError:
            continue
    nvcc = find_nvcc()
    return [*found, *([Nvcc(nvcc)] if nvcc else [])]


@pytest.mark.parametrize("compiler", _compilers(), ids=lambda compiler: type(compiler).__name__)
def test_real_compilers(compiler: Nvrtc | Nvcc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUTURE_CACHE", str(tmp_path))
    source = print_cuda(parse_kernel(NEIGHBOURS.text))
    assert {80, 90} <= set(compiler.architectures())
    made = compile_cuda_text(source, 90, compiler)
    assert made.image.startswith(b"\x7fELF")
    assert "Compiling entry function 'neighbours' for 'sm_90'" in made.log
    with refused(Code.COMPILER, r"kernel.cu\(\d+\): error: "):
        compile_cuda_text(source.replace("threadIdx", "threadIndex"), 90, compiler)
    newer = compile_cuda_text(source, max(compiler.architectures()) + 1, compiler)
    assert b".entry neighbours" in newer.image
