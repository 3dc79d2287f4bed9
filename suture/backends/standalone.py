"""Leaving as a folder of sources: kernels, weights, a C interface, and what builds it. It needs neither Python nor torch.

out/net.h            the interface: create, run, destroy, shapes, errors
out/net.cpp          tables, memory, the interface's functions (net.cu for a GPU)
out/net_kernels_*    the kernels, in several files so that compilers run side by side
out/weights.safetensors, example.c, CMakeLists.txt, README.md
"""

from __future__ import annotations

import importlib.resources
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch

from suture.backends.onnx.provenance import provenance
from suture.backends.standalone_edges import EdgeTables
from suture.backends.standalone_program import Standalone, lower_alone
from suture.backends.standalone_tables import Tables
from suture.codegen.prelude import PRELUDE
from suture.codegen.runner import print_kernels, print_runs
from suture.codegen.toolchain import FLAGS
from suture.ir.errors import Code, SutureError
from suture.ir.files import umask
from suture.ir.folders import replacing_folder
from suture.ir.graph import Graph, Parameter
from suture.ir.kernel import Kernel
from suture.ir.types import DTYPE_NAMES

Target = Literal["cpp", "cuda"]
WEIGHTS = "weights.safetensors"
EXAMPLE_SIZE = 2  # what the example takes for a symbolic size of which the graph gives no hint

_FILES = 8  # files of kernels, at most
_FLAGS = (*(flag for flag in FLAGS if flag not in ("-shared", "-fPIC", "-march=native", "-fopenmp")),)
_BARE = ("-fno-exceptions", "-fno-rtti", "-fno-threadsafe-statics")  # what would need the C++ library


def build(
    graph: Graph, folder: str | Path, *, target: Target = "cpp", name: str | None = None, inspector: Graph | None = None
) -> Path:
    """Write a graph as a folder of sources with a C interface. The folder is there whole or not at all.

    A folder that an earlier build wrote is replaced; what else lies in it stays.

    :param target: `cpp` for processors, `cuda` for NVIDIA GPUs
    :param name: what files and C names begin with; the graph's name if absent
    :param inspector: of message passing, what makes the graph's last inputs from edges: it is written beside the network, for processors
    :returns: the folder
    :raises SutureError: KERNEL, naming the nodes that no kernel covers; INPUT, for a target that does not exist or parameters without data; WRITE, if
        the folder holds other things or cannot be written
    """
    if target not in ("cpp", "cuda"):
        raise SutureError(
            Code.INPUT, f"there is no target {target!r}", where=graph.name, remedy="cpp or cuda would be right"
        )
    folder = Path(folder)
    for parameter in graph.parameters.values():
        if parameter.data.device.type == "meta":
            raise SutureError(
                Code.INPUT, f"{parameter} has no data", where=graph.name, remedy="load the graph with its weights"
            )
    standalone = lower_alone(graph, target, name)
    texts, weights = write_sources(standalone, inspector), gather_weights(standalone)
    with replacing_folder(folder, {"name": standalone.name, "target": target, **provenance(graph)}) as made:
        for file, text in texts.items():
            (made / file).write_text(text, encoding="utf-8")
        _save(weights, made / WEIGHTS, provenance(graph))
    return folder


def write_sources(standalone: Standalone, inspector: Graph | None = None) -> dict[str, str]:
    """The texts of a build, by file."""
    if standalone.program.target == "cuda":
        from suture.backends.standalone_cuda import cuda_sources

        return cuda_sources(standalone)
    name, table = standalone.name, Tables(standalone).fill()
    kernels = {
        f"{name}_kernels_{k}.cpp": with_prelude(print_kernels(share))
        for k, share in enumerate(shares(standalone.program.kernels))
    }
    sources = {
        f"{name}.cpp": filled("network.cpp", table | {"BODY": filled("processor.cpp", table)}),
        f"{name}_runs.cpp": with_prelude(print_runs(standalone.program, export='extern "C" ', prefix=f"{name}_run")),
        **kernels,
    }
    headers: dict[str, str] = {}
    if inspector is not None:
        tables = Tables(standalone)
        found = table | EdgeTables(inspector, tables.symbols, len(tables.inputs)).words()
        sources[f"{name}_edges.cpp"], headers[f"{name}_edges.h"] = filled("edges.cpp", found), filled("edges.h", found)
    by_hand = (
        f"Without CMake:\n\n    g++ {' '.join((*_FLAGS, '-march=native', '-fopenmp', *_BARE))} -c *.cpp\n"
        f"    gcc -O2 example.c *.o -fopenmp -lm -o {name}_example\n"
    )
    words = {
        "LANGUAGES": "C CXX",
        "OPTIONS": f'option({name.upper()}_NATIVE "Compile for the processor of this machine" ON)\nfind_package(OpenMP REQUIRED COMPONENTS CXX)\n'
        'set(CMAKE_CXX_IMPLICIT_LINK_LIBRARIES "")  # the kernels need nothing of the C++ library',
        "PROPERTIES": " LINKER_LANGUAGE C",
        "COMPILE": f"target_compile_options({name} PRIVATE {' '.join((*_FLAGS, *_BARE))})\n"
        f"if({name.upper()}_NATIVE)\n  target_compile_options({name} PRIVATE -march=native)\nendif()\n"
        f"target_link_libraries({name} PRIVATE OpenMP::OpenMP_CXX m)",
        "EXAMPLE_LINK": f"set_target_properties({name}_example PROPERTIES LINKER_LANGUAGE C)",
        "NEEDS": "a C++17 compiler, the C library and OpenMP are enough",
        "BY_HAND": by_hand,
        "THREADS": "`OMP_NUM_THREADS` says how many threads a run takes.",
        "DEVICE_RUN": "",
    }
    return {**finished(standalone, sources, table | words), **headers}


def finished(standalone: Standalone, sources: Mapping[str, str], words: Mapping[str, str]) -> dict[str, str]:
    """The sources with what is the same on every device: interface, headers, example, how to build."""
    graph, name = standalone.graph, standalone.name
    sizes = [str(graph.hints.get(symbol, EXAMPLE_SIZE)) for symbol in standalone.program.graph.symbols()]
    lines = "\n".join(f"  {file}" for file in sources)
    listed = dict(words) | {
        "EXAMPLE_SIZES": ", ".join(sizes) or "0",
        "EXAMPLE_COMMENT": f" /* {', '.join(standalone.program.graph.symbols())} */"
        if sizes
        else " /* the network has no sizes to choose */",
        "SOURCE_LINES": lines,
        "INPUT_ROWS": _rows(standalone.program.graph.inputs, [value.name for value in graph.inputs]),
        "OUTPUT_ROWS": _rows(standalone.outputs, graph.output_names),
        "SIZE_WORDS": ", ".join(f"`{symbol}`" for symbol in standalone.program.graph.symbols()) or "all fixed.",
    }
    return {
        **sources,
        f"{name}.h": filled("interface.h", listed),
        "prelude.h": f"#ifndef SUTURE_PRELUDE_H\n#define SUTURE_PRELUDE_H\n{PRELUDE}\n#endif\n",
        "arena.h": template("arena.h"),
        "safetensors.h": template("safetensors.h"),
        "example.c": filled("example.c", listed),
        "CMakeLists.txt": filled("CMakeLists.txt", listed),
        "README.md": filled("README.md", listed),
    }


def gather_weights(standalone: Standalone) -> dict[str, torch.Tensor]:
    """What the kernels read that does not change: parameters, and what was prepared of them."""
    tables = Tables(standalone)
    prepared = {each.value: each for each in standalone.program.constants}
    found = {}
    for value in tables.weights:
        tensor = value.data.detach() if isinstance(value, Parameter) else prepared[value].make()
        found[value.name] = tensor.cpu().contiguous()
    return found


def shares(kernels: Sequence[Kernel], most: int = _FILES) -> list[list[Kernel]]:
    """Kernels dealt to files so that each has about as much text."""
    found: list[list[Kernel]] = [[] for _ in range(min(most, len(kernels)))]
    lengths = [0] * len(found)
    for kernel in sorted(kernels, key=lambda each: -len(str(each))):
        place = lengths.index(min(lengths))
        found[place].append(kernel)
        lengths[place] += len(str(kernel))
    return found


def with_prelude(text: str) -> str:
    """A printed file that includes the prelude instead of repeating it."""
    assert text.startswith(PRELUDE)
    return f'#include "prelude.h"\n{text.removeprefix(PRELUDE)}'


def template(name: str) -> str:
    """A file that comes with the package."""
    return (importlib.resources.files("suture.backends") / "standalone_sources" / name).read_text(encoding="utf-8")


def filled(name: str, words: Mapping[str, str]) -> str:
    """A template with every `@WORD@` replaced."""
    return re.sub(r"@([A-Z_]+)@", lambda found: words[found[1]], template(name))


def _rows(values: Sequence[object], names: Sequence[str]) -> str:
    from suture.ir.graph import Value

    rows = [
        f"- {k}: `{name}`, {DTYPE_NAMES[value.dtype]}[{', '.join(map(str, value.shape))}]"
        for k, (value, name) in enumerate(zip(values, names, strict=True))
        if isinstance(value, Value)
    ]
    return "\n".join(rows) or "- none"


def _save(weights: Mapping[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
    from safetensors.torch import save_file

    owned: dict[str, torch.Tensor] = {}
    for name, tensor in weights.items():  # a file holds no tensor twice, and none may share memory with another
        owned[name] = tensor.clone()
    try:
        save_file(
            owned, str(path), metadata={"suture": json.dumps(metadata, sort_keys=True)}
        )  # one entry: their order is not kept
        path.chmod(0o666 & ~umask())  # the library makes it the owner's alone
    except Exception as error:
        raise SutureError(
            Code.WRITE, f"the weights cannot be written: {error}", where=str(path), remedy="check space and permissions"
        ) from None
