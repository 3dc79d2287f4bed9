"""Builds for GPUs: nvcc takes them; their host code runs over a stand-in of the CUDA runtime whose kernels are the C++ print of the same kernels."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from standalone_nets import Built, have_compilers, traced

import suture
from suture.backends.standalone_cuda import _launch_parameters, _names
from suture.backends.standalone_program import lower_alone
from suture.codegen.cpp.printer import CppPrinter
from suture.codegen.runner import print_kernels
from suture.drivers.exporting import prepare
from suture.ir.semantics import evaluate
from suture.ir.sizes import evaluate_size

NETS = ("mlp", "mixer", "picks", "ends", "picture", "attends")

RUNTIME = r"""
#pragma once
#include <stdlib.h>
#include <string.h>
typedef int cudaError_t;
typedef void *cudaStream_t;
enum { cudaSuccess = 0, cudaErrorMemoryAllocation = 2 };
enum { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost };
static inline const char *cudaGetErrorString(int code) { return code == 2 ? "out of memory" : code == 9 ? "invalid configuration argument" : "error"; }
static inline int cudaGetDevice(int *device) { return *device = 0; }
static inline int cudaSetDevice(int) { return 0; }
static inline int cudaMalloc(void **made, size_t bytes) { return *made = bytes >> 40 ? NULL : aligned_alloc(256, (bytes + 511) / 256 * 256), *made ? 0 : 2; }
static inline int cudaFree(void *block) { return free(block), 0; }
static inline int cudaMemcpy(void *to, const void *from, size_t bytes, int) { return memcpy(to, from, bytes), 0; }
static inline int cudaMemcpyAsync(void *to, const void *from, size_t bytes, int, cudaStream_t) { return memcpy(to, from, bytes), 0; }
static inline int cudaStreamCreate(cudaStream_t *stream) { return *stream = malloc(1), 0; }
static inline int cudaStreamDestroy(cudaStream_t stream) { return free(stream), 0; }
static inline int cudaStreamSynchronize(cudaStream_t) { return 0; }
"""


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on this machine")
@pytest.mark.slow
@pytest.mark.parametrize("name", ["mixer", "picture", "attends"])
def test_nvcc_takes_it_and_the_example_says_that_there_is_no_gpu(tmp_path: Path, name: str) -> None:
    suture.build(traced(name), tmp_path / "out", target="cuda")
    objects = []
    for source in sorted([*(tmp_path / "out").glob("*.cu"), *(tmp_path / "out").glob("*.cpp")]):
        objects.append(f"{source.stem}.o")
        command = ["nvcc", "-std=c++17", "-arch=sm_90", "-Xcompiler", "-Wall", "-c", source.name, "-o", objects[-1]]
        done = subprocess.run(command, cwd=tmp_path / "out", capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    done = subprocess.run(
        ["nvcc", "example.c", *objects, "-o", "example"],
        cwd=tmp_path / "out",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = subprocess.run(["./example"], cwd=tmp_path / "out", capture_output=True, text=True, check=False)
    assert (said.returncode == 1 and f"{name}: " in said.stderr) or (
        said.returncode == 0 and "F32" in said.stdout
    )  # with a GPU it runs


def over_a_stand_in(folder: Path, name: str) -> Path:
    """The host code of a build as a library, over kernels printed for a processor; each launch checks its number of blocks."""
    graph = prepare(traced(name), check=False)
    kernels = lower_alone(graph, "cuda").program.kernels
    launches = []
    for kernel in kernels:
        printer = CppPrinter(kernel)
        launches.append(
            f'extern "C" int {kernel.name}_launch({", ".join(_launch_parameters(kernel))}) {{\n'
            f"  if ((k_i64)k_blocks != {printer.blocks()} || !k_stream) return 9;\n"
            f"  {kernel.name}({', '.join(_names(kernel))});\n  return 0;\n}}"
        )
    (folder / "cuda_runtime_api.h").write_text(RUNTIME)
    (folder / "kernels.cpp").write_text(print_kernels(kernels) + "\n".join(launches) + "\n")
    flags = ["-std=c++17", "-O1", "-march=native", "-fopenmp", "-fPIC", "-shared", "-I", str(folder)]
    library = folder / "stand_in.so"
    sources = [str(path) for path in sorted(folder.glob("*.cpp"))]
    subprocess.run(["g++", *flags, *sources, "-o", str(library)], check=True)
    return library


@pytest.mark.skipif(not have_compilers(), reason="no C and C++ compilers on this machine")
@pytest.mark.parametrize("name", NETS)
def test_the_host_code_places_moves_and_launches_what_the_graph_says(tmp_path: Path, name: str) -> None:
    graph = traced(name)
    suture.build(graph, tmp_path / "out", target="cuda")
    net = Built(over_a_stand_in(tmp_path / "out", name), name, tmp_path / "out/weights.safetensors", graph.symbols())
    for turn in ((3, 7), (1, 1), (6, 2), (3, 7)):
        numbers = dict(zip(graph.symbols(), turn, strict=False))
        shapes = [[evaluate_size(dim, numbers) for dim in value.shape] for value in graph.inputs]
        inputs = [
            torch.randn(shape) if value.dtype.is_floating_point else torch.randint(0, 6, shape)
            for value, shape in zip(graph.inputs, shapes, strict=True)
        ]
        with torch.no_grad():
            expected = evaluate(graph, inputs)
        for found, wanted in zip(net.run(inputs, numbers), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    net.destroy()


@pytest.mark.skipif(not have_compilers(), reason="no C and C++ compilers on this machine")
def test_bad_calls_get_codes_as_on_a_processor(tmp_path: Path) -> None:
    graph = traced("mixer")
    suture.build(graph, tmp_path / "out", target="cuda")
    net = Built(
        over_a_stand_in(tmp_path / "out", "mixer"), "mixer", tmp_path / "out/weights.safetensors", graph.symbols()
    )
    outputs = [torch.empty(1, 2, 24), torch.empty(1, 24)]
    tokens, shift, sizes = torch.zeros(1, 2, dtype=torch.long), torch.zeros(24), net.sizes([1, 2])
    assert net.call(sizes, [torch.tensor([[0, 11]]), shift], outputs) == Built.ARGUMENT and "embedding" in net.error()
    assert net.call(sizes, [tokens, shift[:23]], outputs) == Built.SIZE
    assert (
        net.call(net.sizes([2**31 - 1, 2**20]), [tokens, shift], outputs) == Built.MEMORY
        and "out of memory" in net.error()
    )
    assert net.call(sizes, [tokens, shift], outputs) == Built.OK
    assert net.create(tmp_path / "nowhere") == Built.WEIGHTS and not net.handle
