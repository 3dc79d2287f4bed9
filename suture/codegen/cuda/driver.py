"""The CUDA driver through `ctypes`: contexts, modules, functions and launches, and nothing else of it.

Every call goes through one place that turns the driver's error codes into `SutureError` with `Code.DEVICE`. The driver library is a parameter, so
that another one with the same functions can stand in its place.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from suture.ir.errors import Code, SutureError

MOST_BLOCKS = 2**31 - 1
"""Blocks that one launch may have in its first dimension, on every GPU since compute capability 3.0."""


class DeviceAttribute(IntEnum):
    """What a device says of itself: `CUdevice_attribute`."""

    WARPS_SIZE = 10
    MULTIPROCESSORS = 16
    THREADS_PER_MULTIPROCESSOR = 39
    MAJOR = 75
    MINOR = 76
    SHARED_OPT_IN = 97


class FunctionAttribute(IntEnum):
    """What a compiled kernel says of itself: `CUfunction_attribute`."""

    MOST_THREADS = 0
    STATIC_SHARED = 1
    LOCAL = 3
    REGISTERS = 4
    MOST_DYNAMIC_SHARED = 8


@dataclass(frozen=True)
class Function:
    """A kernel in a loaded module."""

    handle: int
    name: str


class Driver:
    """The driver's functions.

    :param library: `libcuda`, loaded
    :raises SutureError: DEVICE, if the driver cannot start
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._call("cuInit", ctypes.c_uint(0))

    def devices(self) -> int:
        """How many GPUs there are."""
        count = ctypes.c_int()
        self._call("cuDeviceGetCount", ctypes.byref(count))
        return count.value

    def device(self, ordinal: int) -> int:
        """The handle of a GPU.

        :raises SutureError: DEVICE, if there is none of that number
        """
        there = self.devices()
        if not 0 <= ordinal < there:
            raise SutureError(
                Code.DEVICE, f"there is no GPU {ordinal}", where="the CUDA driver",
                remedy=f"the GPUs are 0 to {there - 1}" if there else "no GPU is visible: see CUDA_VISIBLE_DEVICES and nvidia-smi",
            )  # fmt: skip
        handle = ctypes.c_int()
        self._call("cuDeviceGet", ctypes.byref(handle), ctypes.c_int(ordinal))
        return handle.value

    def name(self, device: int) -> str:
        """What a GPU is called."""
        text = ctypes.create_string_buffer(128)
        self._call("cuDeviceGetName", text, ctypes.c_int(len(text)), ctypes.c_int(device))
        return text.value.decode()

    def attribute(self, device: int, attribute: DeviceAttribute) -> int:
        """A number that a GPU says of itself."""
        value = ctypes.c_int()
        self._call("cuDeviceGetAttribute", ctypes.byref(value), ctypes.c_int(attribute), ctypes.c_int(device))
        return value.value

    def context(self, device: int) -> int:
        """A GPU's primary context, which is the one that torch uses; it stays."""
        context = ctypes.c_void_p()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), ctypes.c_int(device))
        assert context.value is not None
        return context.value

    def enter(self, context: int) -> None:
        """Make a context this thread's."""
        self._call("cuCtxSetCurrent", ctypes.c_void_p(context))

    def load(self, image: bytes) -> int:
        """Load a module from a cubin or from PTX; the handle."""
        module = ctypes.c_void_p()
        self._call("cuModuleLoadData", ctypes.byref(module), ctypes.c_char_p(image))
        assert module.value is not None
        return module.value

    def function(self, module: int, name: str) -> Function:
        """A kernel of a module."""
        handle = ctypes.c_void_p()
        self._call("cuModuleGetFunction", ctypes.byref(handle), ctypes.c_void_p(module), ctypes.c_char_p(name.encode()))
        assert handle.value is not None
        return Function(handle.value, name)

    def function_attribute(self, function: Function, attribute: FunctionAttribute) -> int:
        """A number that a kernel says of itself."""
        value = ctypes.c_int()
        handle = ctypes.c_void_p(function.handle)
        self._call("cuFuncGetAttribute", ctypes.byref(value), ctypes.c_int(attribute), handle)
        return value.value

    def allow_shared(self, function: Function, size: int) -> None:
        """Let a kernel have more shared memory at a launch than it could declare."""
        attribute = ctypes.c_int(FunctionAttribute.MOST_DYNAMIC_SHARED)
        self._call("cuFuncSetAttribute", ctypes.c_void_p(function.handle), attribute, ctypes.c_int(size))

    def occupancy(self, function: Function, threads: int, shared: int) -> int:
        """How many blocks of a kernel one multiprocessor runs at a time."""
        blocks = ctypes.c_int()
        self._call(
            "cuOccupancyMaxActiveBlocksPerMultiprocessor", ctypes.byref(blocks), ctypes.c_void_p(function.handle),
            ctypes.c_int(threads), ctypes.c_size_t(shared),
        )  # fmt: skip
        return blocks.value

    def launch(
        self, function: Function, blocks: int, threads: int, shared: int, stream: int, arguments: Sequence[Any]
    ) -> None:
        """Put a kernel on a stream.

        :param arguments: `ctypes` numbers and pointers, in the kernel's order
        :raises SutureError: DEVICE, if the driver refuses the launch; what goes wrong while a kernel runs shows at a later call
        """
        places = [ctypes.cast(ctypes.pointer(each), ctypes.c_void_p) for each in arguments]
        packed = (ctypes.c_void_p * len(places))(*places)
        one = ctypes.c_uint(1)
        self._call(
            "cuLaunchKernel", ctypes.c_void_p(function.handle), ctypes.c_uint(blocks), one, one, ctypes.c_uint(threads), one, one,
            ctypes.c_uint(shared), ctypes.c_void_p(stream), packed, None, what=f"kernel {function.name}",
        )  # fmt: skip

    def _call(self, name: str, *arguments: object, what: str = "the CUDA driver") -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            raise SutureError(
                Code.DEVICE, f"{name}: {self._explained(status)}", where=what,
                remedy="run nvidia-smi to see whether the driver and a GPU are there" if name == "cuInit" else
                "CUDA_LAUNCH_BLOCKING=1 shows which launch it was, compute-sanitizer where in it",
            )  # fmt: skip

    def _explained(self, status: int) -> str:
        text = ctypes.c_char_p()
        if self._library.cuGetErrorString(ctypes.c_int(status), ctypes.byref(text)) or text.value is None:
            return f"error {status}"
        return f"{text.value.decode()} ({status})"


@functools.cache
def find_driver() -> Driver:
    """The driver of this machine.

    :raises SutureError: DEVICE, if there is none
    """
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        library = ctypes.CDLL(name)
    except OSError:
        raise SutureError(
            Code.DEVICE, "there is no CUDA driver on this machine", where=name, remedy="install NVIDIA's driver, or compile for target='cpp'"
        ) from None  # fmt: skip
    return Driver(library)
