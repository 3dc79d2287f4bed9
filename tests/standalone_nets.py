"""Networks that are built as folders of sources, and a build as Python calls it: through its C interface."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

import suture
from suture.backends.standalone import _BARE, _FLAGS
from suture.ir.graph import Graph

DTYPES = {"F32": torch.float32, "F64": torch.float64, "I64": torch.int64, "BOOL": torch.bool, "I32": torch.int32}


class Mixer(nn.Module):
    """Tokens, a table, norms, products, a residual, several results."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 24)
        self.first, self.second = nn.Linear(24, 40), nn.Linear(40, 24)
        self.norm = nn.LayerNorm(24)

    def forward(self, tokens: torch.Tensor, shift: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = self.table(tokens) + shift
        x = x + self.second(nn.functional.gelu(self.first(self.norm(x))))
        return x, torch.softmax(x, -1).amax(1)


class Ends(nn.Module):
    """Results that no kernel makes by itself: an input, a view, a parameter, one value twice."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = torch.relu(x * self.weight)
        return x, y.transpose(0, 1), self.weight, y, y


class Picks(nn.Module):
    """Indices that data hold."""

    def forward(self, x: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        return x[:, at] * 2.0


class Picture(nn.Module):
    """Convolutions, a norm of the batch, pooling; a result of four dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.deep, self.last = nn.Conv2d(8, 8, 3, stride=2, groups=8), nn.Conv2d(8, 12, 1)
        self.norm.running_mean = torch.randn(8)
        self.norm.running_var = torch.rand(8) + 0.5

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = nn.functional.silu(self.norm(self.first(x)))
        x = self.last(self.deep(x))
        return x, nn.functional.max_pool2d(x, 2).mean((2, 3))


class Attends(nn.Module):
    """Attention over several heads, causal, and a product of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.into(x).view(x.shape[0], x.shape[1], 3, 4, 4).permute(2, 0, 3, 1, 4).unbind(0)
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return x + self.out(y.transpose(1, 2).flatten(2))


def traced(name: str) -> Graph:
    """One of the networks, with symbolic sizes."""
    torch.manual_seed(0)
    match name:
        case "mixer":
            given = (torch.zeros(2, 5, dtype=torch.long), torch.zeros(24))
            return suture.trace(Mixer().eval(), given, dynamic={"tokens": {0: "batch", 1: "length"}}, name="mixer")
        case "ends":
            return suture.trace(Ends().eval(), (torch.zeros(4, 3),), dynamic={"x": {0: "rows"}}, name="ends")
        case "picture":
            return suture.trace(
                Picture().eval(), (torch.zeros(2, 3, 9, 11),), dynamic={"x": {0: "batch"}}, name="picture"
            )
        case "attends":
            given = torch.zeros(2, 7, 16)
            return suture.trace(Attends().eval(), (given,), dynamic={"x": {0: "batch", 1: "length"}}, name="attends")
        case "picks":
            given = (torch.zeros(2, 6), torch.zeros(4, dtype=torch.long))
            return suture.trace(Picks(), given, dynamic={"x": {0: "rows"}, "at": {0: "count"}}, name="picks")
    layers = [nn.Linear(6, 32), nn.GELU(), nn.LayerNorm(32), nn.Linear(32, 3)]
    return suture.trace(
        nn.Sequential(*layers).eval(), (torch.zeros(2, 6),), dynamic={"input": {0: "batch"}}, name="mlp"
    )


def compile_folder(folder: Path, name: str, *flags: str, optimise: str = "-O1") -> Path:
    """The folder as a shared library, by the compilers themselves."""
    made = folder / "by_hand"
    made.mkdir(exist_ok=True)
    options = [
        *_FLAGS,
        optimise,
        "-march=native",
        "-fopenmp",
        "-fPIC",
        "-fvisibility=hidden",
        *_BARE,
        "-Wall",
        "-Werror",
        *flags,
    ]
    quiet = [
        "-Wno-unused-variable",
        "-Wno-unused-but-set-variable",
        "-Wno-unused-function",
        "-Wno-unknown-pragmas",
        "-Wno-psabi",
    ]
    objects = []
    for source in sorted(folder.glob("*.cpp")):
        objects.append(str(made / f"{source.stem}.o"))
        subprocess.run(["g++", *options, *quiet, "-c", str(source), "-o", objects[-1]], check=True)
    library = made / f"lib{name}.so"
    subprocess.run(["gcc", "-shared", *objects, "-fopenmp", "-lm", *flags, "-o", str(library)], check=True)
    return library


class Buffer(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("bytes", ctypes.c_size_t)]


class Tensor(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("type", ctypes.c_char_p),
        ("element", ctypes.c_size_t),
        ("rank", ctypes.c_int),
    ]


class Built:
    """An instance of a built network."""

    OK, ARGUMENT, WEIGHTS, SIZE, MEMORY, DEVICE = range(6)

    def __init__(self, library: Path, name: str, weights: Path | None = None, symbols: Sequence[str] = ()) -> None:
        self.library, self.name, self.symbols = ctypes.CDLL(str(library)), name, tuple(symbols)
        for call in ("input", "output"):
            self.function(call).restype = ctypes.POINTER(Tensor)
        for call in ("input_bytes", "output_bytes", "memory"):
            self.function(call).restype = ctypes.c_int64
        self.function("error").restype = ctypes.c_char_p
        self.handle = ctypes.c_void_p()
        if weights is not None:
            code = self.create(weights)
            assert code == self.OK, self.error()

    def function(self, call: str) -> ctypes._NamedFuncPointer:
        found = getattr(self.library, f"{self.name}_{call}")
        assert isinstance(found, ctypes._CFuncPtr)
        return found

    def create(self, weights: Path) -> int:
        return int(self.function("create")(ctypes.byref(self.handle), os.fsencode(weights)))

    def destroy(self) -> None:
        self.function("destroy")(self.handle)
        self.handle = ctypes.c_void_p()

    def error(self) -> str:
        return bytes(self.function("error")()).decode()

    def sizes(self, numbers: Mapping[str, int] | Sequence[int]) -> ctypes.Array[ctypes.c_int64]:
        values = [numbers[each] for each in self.symbols] if isinstance(numbers, Mapping) else list(numbers)
        return (ctypes.c_int64 * max(1, len(values)))(*values)

    def shape(self, call: str, number: int, sizes: ctypes.Array[ctypes.c_int64]) -> list[int]:
        tensor = self.function(call)(number)[0]
        room = (ctypes.c_int64 * 16)()
        assert self.function(f"{call}_shape")(number, sizes, room) == self.OK, self.error()
        return list(room[: tensor.rank])

    def run(
        self, inputs: Sequence[torch.Tensor], numbers: Mapping[str, int] | Sequence[int] = ()
    ) -> list[torch.Tensor]:
        """The outputs, of tensors."""
        sizes, outputs = self.sizes(numbers), []
        while self.function("output")(len(outputs)):
            kind = DTYPES[self.function("output")(len(outputs))[0].type.decode()]
            outputs.append(torch.full(self.shape("output", len(outputs), sizes), 77, dtype=kind))
        code = self.call(sizes, inputs, outputs)
        assert code == self.OK, self.error()
        return outputs

    def call(self, sizes: object, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> int:
        """The code of a call."""
        ends = [(Buffer * max(1, len(side)))(*map(buffer, side)) for side in (inputs, outputs)]
        return int(self.function("run")(self.handle, sizes, *ends))


def buffer(tensor: torch.Tensor) -> Buffer:
    return Buffer(tensor.data_ptr(), tensor.numel() * tensor.element_size())


def have_compilers() -> bool:
    return all(map(shutil.which, ("gcc", "g++")))
