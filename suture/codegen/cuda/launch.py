"""Kernels on a GPU: loaded once, launched with addresses and sizes on a stream."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from suture.codegen.cuda.compile import Module, compile_cuda_text
from suture.codegen.cuda.driver import MOST_BLOCKS, DeviceAttribute, Driver, Function, find_driver
from suture.codegen.cuda.printer import STATIC_SHARED, launch_threads, print_cuda, shared_bytes
from suture.codegen.cuda.tensor import ARCHITECTURE
from suture.codegen.expressions import C_TYPES
from suture.ir.errors import Code, SutureError
from suture.ir.kernel import Expression, Kernel, Literal
from suture.ir.kernel_text import print_expression

Compile = Callable[[str, int], Module]
Clock = Callable[[torch.device, Callable[[], object], int], float]
_SCALARS = {"float": ctypes.c_float, "double": ctypes.c_double, "k_i32": ctypes.c_int32}


def _torch_stream(device: torch.device) -> int:
    return int(torch.cuda.current_stream(device).cuda_stream)


def _event_seconds(place: torch.device, run: Callable[[], object], calls: int) -> float:
    """The seconds that a call takes the GPU, without what Python takes to say so: calls are recorded as one CUDA graph, and timed by events."""
    with torch.cuda.device(place):
        side = torch.cuda.Stream(place)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(place))
        with torch.cuda.stream(side):
            run()
        torch.cuda.current_stream(place).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(calls):
                run()
        graph.replay()
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        graph.replay()
        stop.record()
        stop.synchronize()
    return float(start.elapsed_time(stop)) / 1e3 / calls


@dataclass
class Device:
    """A GPU: where its tensors are, on which stream kernels go, who compiles for it.

    :param place: what torch calls it
    :param driver: the CUDA driver
    :param stream: the stream that torch works on at the moment, as a handle
    :param compile: makes a module of CUDA C++ for a compute capability times ten
    :param clock: the seconds that one of so many calls of a function takes there
    """

    place: torch.device
    driver: Driver
    stream: Callable[[torch.device], int] = _torch_stream
    compile: Compile = compile_cuda_text
    clock: Clock = _event_seconds
    handle: int = field(init=False)
    architecture: int = field(init=False)
    _context: int = field(init=False)

    def __post_init__(self) -> None:
        self.handle = self.driver.device(self.place.index or 0)
        self._context = self.driver.context(self.handle)
        major, minor = (
            self.driver.attribute(self.handle, each) for each in (DeviceAttribute.MAJOR, DeviceAttribute.MINOR)
        )
        self.architecture = 10 * major + minor

    @property
    def name(self) -> str:
        """What it is called."""
        return self.driver.name(self.handle)

    @property
    def has_tensor_cores(self) -> bool:
        """Whether it multiplies matrices of bfloat16."""
        return self.architecture >= ARCHITECTURE

    def enter(self) -> None:
        """Make it the one that this thread's launches go to."""
        self.driver.enter(self._context)

    def seconds(self, run: Callable[[], object], calls: int) -> float:
        """The seconds that one of so many calls of a function takes."""
        return self.clock(self.place, run, calls)

    def load(self, kernels: Sequence[Kernel]) -> dict[str, CudaKernel]:
        """Compile kernels into one module and load it.

        :returns: the kernels, by name
        :raises SutureError: COMPILER, WRITE or DEVICE
        """
        if not kernels:
            return {}
        made = self.compile(print_cuda(*kernels, tensor_cores=self.has_tensor_cores), self.architecture)
        self.enter()
        module = self.driver.load(made.image)
        return {each.name: CudaKernel(each, self.driver.function(module, each.name), self) for each in kernels}


def find_device(place: torch.device | str = "cuda") -> Device:
    """A GPU of this machine, the current one if no number is said.

    :raises SutureError: DEVICE, if there is no driver, no GPU, or torch was built without CUDA
    """
    place = torch.device(place)
    if place.type != "cuda":
        raise SutureError(Code.DEVICE, f"{place} is no CUDA device", remedy="cuda or cuda:0 would be right")
    driver = find_driver()
    if not torch.cuda.is_available():
        raise SutureError(
            Code.DEVICE, f"torch {torch.__version__} sees no GPU", where="torch.cuda.is_available()",
            remedy="install torch's CUDA build that fits the driver (see nvidia-smi)",
        )  # fmt: skip
    index = torch.cuda.current_device() if place.index is None else place.index
    return Device(torch.device("cuda", index), driver)


class CudaKernel:
    """A loaded kernel, as a function of tensors or of addresses."""

    def __init__(self, kernel: Kernel, function: Function, device: Device) -> None:
        self.kernel, self.function, self.device = kernel, function, device
        self.threads = launch_threads(kernel)
        shared = shared_bytes(kernel, tensor_cores=device.has_tensor_cores)
        self.dynamic = shared if shared > STATIC_SHARED else 0
        if self.dynamic:
            self._allow(self.dynamic)
        self._blocks = size_function(kernel, [each.count for each in kernel.grid])
        self._shapes = size_function(kernel, [size for buffer in kernel.arguments for size in buffer.shape])

    def _allow(self, size: int) -> None:
        most = self.device.driver.attribute(self.device.handle, DeviceAttribute.SHARED_OPT_IN)
        if size > most:
            raise SutureError(
                Code.DEVICE, f"a block takes {size} bytes of shared memory", where=f"kernel {self.kernel.name}",
                remedy=f"{self.device.name} has {most}: choose smaller tiles",
            )  # fmt: skip
        self.device.driver.allow_shared(self.function, size)

    def launch(self, sizes: Sequence[int], addresses: Iterable[int], scalars: Sequence[Any] = ()) -> None:
        """Put it on the device's stream; nothing is checked but the number of blocks.

        :param sizes: the kernel's size arguments, in order
        :param addresses: where its buffers are, aligned to `suture.codegen.cuda.ALIGNMENT`
        :raises SutureError: DEVICE, if there are more blocks than a launch may have, or the driver refuses
        """
        blocks = 1
        for count in self._blocks(*sizes):
            blocks *= max(count, 0)
        if blocks == 0:
            return
        if blocks > MOST_BLOCKS:
            raise SutureError(
                Code.DEVICE, f"{blocks} blocks", where=f"kernel {self.kernel.name}", remedy=f"a launch has at most {MOST_BLOCKS}: split the input"
            )  # fmt: skip
        kinds = [_SCALARS.get(C_TYPES[each.dtype], ctypes.c_int64) for each in self.kernel.scalars]
        arguments: list[Any] = [ctypes.c_int64(size) for size in sizes]
        arguments += [kind(value) for kind, value in zip(kinds, scalars, strict=True)]
        arguments += [ctypes.c_void_p(address) for address in addresses]
        device = self.device
        device.driver.launch(self.function, blocks, self.threads, self.dynamic, device.stream(device.place), arguments)

    def __call__(self, *tensors: torch.Tensor, **scalars: float) -> None:
        """Run it on tensors, one for each argument; it writes into those that the kernel writes.

        :raises SutureError: INPUT, if a tensor is missing, of another type or shape, not contiguous or not aligned; DEVICE, if it is elsewhere
        """
        sizes = self.bind(tensors)
        missing = [each.name for each in self.kernel.scalars if each.name not in scalars]
        if missing:
            raise SutureError(
                Code.INPUT, f"the number {missing[0]} is missing", where=f"kernel {self.kernel.name}", remedy="give it by name"
            )  # fmt: skip
        self.device.enter()
        self.launch(sizes, [each.data_ptr() for each in tensors], [scalars[each.name] for each in self.kernel.scalars])

    def bind(self, tensors: Sequence[torch.Tensor]) -> list[int]:
        """The sizes that the tensors' shapes say, after checks."""
        where = f"kernel {self.kernel.name}"
        if len(tensors) != len(self.kernel.arguments):
            names = ", ".join(each.name for each in self.kernel.arguments)
            raise SutureError(Code.INPUT, f"{len(tensors)} tensors", where=where, remedy=f"it takes {names}")
        found: dict[str, int] = {}
        for buffer, tensor in zip(self.kernel.arguments, tensors, strict=True):
            require_place(tensor, self.device.place, f"{buffer.name} of {where}")
            if tensor.dtype != buffer.dtype or tensor.ndim != len(buffer.shape) or not tensor.is_contiguous():
                state = "" if tensor.is_contiguous() else ", not contiguous"
                raise SutureError(
                    Code.INPUT, f"{buffer.name} is {tensor.dtype} of rank {tensor.ndim}{state}", where=where,
                    remedy=f"{buffer.dtype} of rank {len(buffer.shape)}, contiguous, would be right",
                )  # fmt: skip
            for dim, size in zip(buffer.shape, tensor.shape, strict=True):
                name = getattr(dim, "name", None)
                if name is not None:
                    found.setdefault(name, size)
        sizes = [found.get(each.name, 0) for each in self.kernel.sizes]
        wanted = iter(self._shapes(*sizes))
        for buffer, tensor in zip(self.kernel.arguments, tensors, strict=True):
            for size, right in zip(tensor.shape, wanted, strict=False):
                if size != right:
                    raise SutureError(
                        Code.INPUT, f"{buffer.name} has {size} where {right} is right", where=where, remedy="shapes must agree"
                    )  # fmt: skip
        return sizes


def require_place(tensor: torch.Tensor, place: torch.device, what: str) -> None:
    """Refuse a tensor that is elsewhere.

    :raises SutureError: DEVICE
    """
    if tensor.device != place:
        raise SutureError(
            Code.DEVICE, f"{what} is on {tensor.device}", remedy=f"it runs on {place}: move it there with .to({str(place)!r})"
        )  # fmt: skip


def size_function(kernel: Kernel, expressions: Sequence[Expression]) -> Callable[..., tuple[int, ...]]:
    """Sizes as a function of the kernel's size arguments, in order. Index expressions of kernels read as Python, so Python reads them."""
    if all(isinstance(each, Literal) for each in expressions):
        numbers = tuple(int(each.value) for each in expressions if isinstance(each, Literal))
        return lambda *sizes: numbers
    names = ", ".join(each.name for each in kernel.sizes)
    texts = "".join(f"{print_expression(each)}, " for each in expressions)
    scope: Mapping[str, Any] = {"min": min, "max": max, "abs": abs, "__builtins__": {}}
    made: Callable[..., tuple[int, ...]] = eval(f"lambda {names}: ({texts})", dict(scope))
    return made
