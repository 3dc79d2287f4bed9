"""A GPU that is not there: the printed CUDA text runs on the CPU, thread by thread, behind a driver with the real one's functions."""

from __future__ import annotations

import ctypes
import functools
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from suture.codegen.cuda.compile import Module
from suture.codegen.cuda.driver import Driver
from suture.codegen.cuda.launch import Device, find_device
from suture.codegen.cuda.tensor import LDMATRIX, MMA
from suture.codegen.toolchain import build

HERE = Path(__file__).parent
FLAGS = ("-std=c++17", "-O1", "-fPIC", "-shared", "-fno-strict-aliasing", "-w")


class State(ctypes.Structure):
    """What the driver was asked last, and what it is made to answer."""

    _fields_ = [
        *((name, ctypes.c_int) for name in ("devices", "fails", "launches", "architecture", "backwards")),
        *((name, ctypes.c_uint) for name in ("blocks", "threads", "shared")),
        ("stream", ctypes.c_void_p),
    ]


@functools.cache
def library() -> ctypes.CDLL:
    return build((HERE / "driver.cpp").read_text(encoding="utf-8"), flags=("-std=c++17", "-O1", "-fPIC", "-shared"))


def state() -> State:
    found = library().stand_in_state
    found.restype = ctypes.c_void_p
    return State.from_address(found())


def emulated(source: str) -> str:
    """The printed text with the CPU's threads in front, tensor cores' instructions as functions, and a way in for each kernel."""
    text = (HERE / "threads.h").read_text(encoding="utf-8") + source
    for kind, transposed in (("", "false"), (".trans", "true")):
        text = text.replace(LDMATRIX.format(kind=kind), f"  stand_in_ldmatrix(r, row, {transposed});")
    for kind in ("bf16", "f16"):
        text = text.replace(MMA.format(kind=kind), f"  stand_in_mma(c, a, b, k_from_{kind});")
    assert "asm volatile" not in text
    text = re.sub(r"extern __shared__ .*?k_dynamic\[\];", "unsigned char* k_dynamic = stand_in_dynamic;", text)
    entries = []
    for match in re.finditer(r'extern "C" __global__ void __launch_bounds__\(.*?\) (\w+)\((.*?)\) \{', source):
        types = [" ".join(each.replace("__restrict__", "").split()[:-1]) for each in match[2].split(", ")]
        given = ", ".join(f"*({kind}*)parameters[{k}]" for k, kind in enumerate(types))
        entries.append(
            f'extern "C" int stand_in_{match[1]}(unsigned blocks, unsigned threads, unsigned shared, int backwards, void** parameters) {{\n'
            f"  return stand_in_run(blocks, threads, shared, backwards, [=] {{ {match[1]}({given}); }});\n}}"
        )
    return text + "\n".join(entries) + "\n"


def compile_stand_in(source: str, architecture: int) -> Module:
    """A module for the stand-in's driver: the path of a library."""
    made = build(emulated(source), flags=FLAGS)
    return Module(made._name.encode(), "")


def processor_seconds(place: torch.device, run: Callable[[], object], calls: int) -> float:
    """The stand-in's clock: this process's time."""
    start = time.process_time()
    for _ in range(calls):
        run()
    return (time.process_time() - start) / calls


def device(
    *, backwards: bool = False, architecture: int = 90, compile: Callable[[str, int], Module] = compile_stand_in
) -> Device:
    """A GPU whose memory is the CPU's; its threads run from the first to the last, or backwards."""
    current = state()
    current.devices, current.fails, current.launches = 1, 0, 0
    current.architecture, current.backwards = architecture, int(backwards)
    return Device(torch.device("cpu"), Driver(library()), lambda place: 0, compile, processor_seconds)


def devices(*, architecture: int = 90) -> Iterator[Device]:
    """The GPU with `--device cuda`, else the stand-in in both orders of its threads, one at a time."""
    if os.environ.get("SUTURE_TEST_DEVICE") == "cuda":
        yield find_device()
        return
    for backwards in (False, True):
        yield device(backwards=backwards, architecture=architecture)
