"""`model net = torch "zoo:resnet50" weights "w.safetensors" input f32[batch, 3, 224, 224]` -> a graph.

Planned, the module is built on the meta device and only the weights' header is read; where a constructor needs real numbers, it is built
with them and they are dropped. Run, the weights are loaded into it.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import io
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from suture.frontends.checkpoint import fit_weights, load_weights, read_shapes
from suture.frontends.script.ast import Argument, Input, InputType, SizeSymbol, TorchSource
from suture.frontends.script.imports import describe_exception, import_callable, importable
from suture.frontends.script.steps import plain
from suture.ir.errors import Code, SutureError, nearest
from suture.ir.graph import Graph
from suture.ir.types import DTYPES, TensorType

_FIRST_EXAMPLE = 2
"""The size that the first symbol is traced at: tracing cannot tell a varying 1 from a fixed one."""

_OTHER_EXAMPLE = 16


@dataclass(frozen=True)
class ModelInputs:
    """What a module is traced with: example arguments, and which of their dimensions vary."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    dynamic: Mapping[str, Mapping[int, str]]
    constants: Mapping[str, Any]

    def to(self, device: str) -> ModelInputs:
        """The same on another device."""
        args = tuple(item.to(device) for item in self.args)
        kwargs = {name: item.to(device) for name, item in self.kwargs.items()}
        return ModelInputs(args, kwargs, self.dynamic, self.constants)


def build_graph(source: TorchSource, folder: Path, weights: Path | None, *, planned: bool) -> Graph:
    """Import the callable, call it, load the weights, trace.

    :param folder: the script's folder
    :param weights: the weights file, resolved
    :param planned: only shapes; every parameter of the graph ends on the meta device
    :raises SutureError: SCRIPT_MODEL, WEIGHTS, or what tracing says
    """
    callable_ = import_callable(source.callable.value, folder)
    if not planned:
        module = make_module(source, callable_, folder, device=None)
        if weights is not None:
            load_into(module, weights)
        return trace_module(module, source.inputs, folder)
    try:
        module = make_module(source, callable_, folder, device="meta")
        graph = trace_module(module, source.inputs, folder, device="meta")
    except Exception:
        # Some constructors compute with numbers, some ship theirs. If this fails too, its error is the one to see.
        module = make_module(source, callable_, folder, device=None)
        graph = trace_module(module, source.inputs, folder)
    if weights is not None:
        expected, optional = state_types(module)
        fit_weights(expected, read_shapes(weights), where=weights.name, optional=optional)
    return without_numbers(graph)


def make_module(
    source: TorchSource, callable_: Callable[..., Any], folder: Path, *, device: str | None
) -> torch.nn.Module:
    """Call the callable of a model statement, or take it as it is if it is a module already.

    :raises SutureError: SCRIPT_MODEL, with what it raised, or if it returns no module
    """
    name = source.callable.value
    args, kwargs = _arguments(source.arguments)
    if isinstance(callable_, torch.nn.Module):
        if args or kwargs:
            raise SutureError(Code.SCRIPT_MODEL, f"{name} is a module already", remedy="leave out 'args'")
        return callable_.eval()
    place: Any = torch.device(device) if device else contextlib.nullcontext()
    with importable(folder), place, warnings.catch_warnings():
        if device == "meta":
            warnings.simplefilter("ignore")  # that a weight cannot be copied into a tensor without data is the point
        try:
            module = callable_(*args, **kwargs)
        except SutureError:
            raise
        except Exception as error:
            remedy = _signature_remedy(callable_, args, kwargs)
            raise SutureError(Code.SCRIPT_MODEL, f"{name} raised {describe_exception(error)}", remedy=remedy) from error
    if not isinstance(module, torch.nn.Module):
        what = f"{name} returned a {type(module).__name__}"
        raise SutureError(Code.SCRIPT_MODEL, what, remedy="it must return a torch.nn.Module")
    return module.eval()


def load_into(module: torch.nn.Module, path: Path) -> None:
    """Load a weights file into a module, strictly but for tied tensors.

    :raises SutureError: WEIGHTS, or what reading the file says
    """
    tensors = load_weights(path)
    expected, optional = state_types(module)
    found = {name: TensorType(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    fit_weights(expected, found, where=path.name, optional=optional)
    module.load_state_dict(tensors, strict=False)


def state_types(module: torch.nn.Module) -> tuple[dict[str, TensorType], frozenset[str]]:
    """The types of a module's state dict, and the names that a file may lack because another names the same tensor."""
    state = module.state_dict(keep_vars=True)
    first: dict[int, str] = {}
    tied: set[str] = set()
    for name, tensor in state.items():
        if id(tensor) in first:
            tied |= {name, first[id(tensor)]}
        first.setdefault(id(tensor), name)
    types = {name: TensorType(tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()}
    return types, frozenset(tied)


def trace_module(module: torch.nn.Module, inputs: Sequence[Input], folder: Path, device: str = "cpu") -> Graph:
    """Trace a module with the inputs of a model statement."""
    from suture.frontends.torch_export import trace

    example = example_inputs(module, inputs).to(device)
    said = io.StringIO()
    with importable(folder), contextlib.redirect_stderr(said):  # torch prints its half-made program when it fails
        graph = trace(module, example.args, {**example.kwargs, **example.constants}, dynamic=example.dynamic or None)
    sys.stderr.write(said.getvalue())
    return graph


def example_inputs(module: torch.nn.Module, inputs: Sequence[Input]) -> ModelInputs:
    """Tensors of the declared types: zeros and ones would do, since only shapes are traced.

    :raises SutureError: SCRIPT_MODEL, if a symbol has two sizes or there are more inputs than the module takes
    """
    sizes = _symbol_sizes(inputs)
    positions = _positional_names(module)
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    constants: dict[str, Any] = {}
    dynamic: dict[str, dict[int, str]] = {}
    for item in inputs:
        if not isinstance(item.value, InputType):
            assert item.name is not None
            constants[item.name.text] = plain(item.value)
            continue
        if item.name is None and len(args) >= len(positions):
            what = f"the model takes {len(positions)} inputs by position, there are more"
            raise SutureError(Code.SCRIPT_MODEL, what, remedy=f"it takes {', '.join(positions) or 'none'}")
        name = item.name.text if item.name else positions[len(args)]
        tensor = _example(item.value, sizes)
        varying = {k: size.name.text for k, size in enumerate(item.value.sizes) if isinstance(size, SizeSymbol)}
        if varying:
            dynamic[name] = varying
        if item.name is None:
            args.append(tensor)
        else:
            kwargs[name] = tensor
    return ModelInputs(tuple(args), kwargs, dynamic, constants)


def without_numbers(graph: Graph) -> Graph:
    """The graph with every tensor on the meta device: shapes and types, no data."""
    for parameter in graph.parameters.values():
        parameter.assign(parameter.data.to("meta"))
    return graph


def file_hash(path: Path) -> str:
    """The first half of a file's SHA-256, as hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:32]


def _arguments(arguments: Sequence[Argument]) -> tuple[list[Any], dict[str, Any]]:
    args = [plain(item.value) for item in arguments if item.name is None]
    return args, {item.name.text: plain(item.value) for item in arguments if item.name is not None}


def _signature_remedy(callable_: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    try:
        signature = inspect.signature(callable_)
        signature.bind(*args, **kwargs)
    except TypeError:
        return f"it takes {signature}"
    except ValueError:
        return "check its arguments"
    return "call it by itself to see where"


def _positional_names(module: torch.nn.Module) -> list[str]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [name for name, item in inspect.signature(module.forward).parameters.items() if item.kind in kinds]


def _symbol_sizes(inputs: Sequence[Input]) -> dict[str, int]:
    """The size that each symbol is traced at: as written, else 2 for the first and 16, 17, ... for the others."""
    given: dict[str, int] = {}
    order: list[str] = []
    for item in inputs:
        for size in item.value.sizes if isinstance(item.value, InputType) else ():
            if not isinstance(size, SizeSymbol):
                continue
            name = size.name.text
            order.append(name)
            if size.example is None:
                continue
            number = int(size.example.value)
            if given.setdefault(name, number) != number:
                what = f"the size {name} is traced at {given[name]} and at {number}"
                raise SutureError(Code.SCRIPT_MODEL, what, remedy="give it one size")
            if number < _FIRST_EXAMPLE:
                what = f"the size {name} cannot be traced at {number}"
                raise SutureError(
                    Code.SCRIPT_MODEL, what, remedy=f"give it at least {_FIRST_EXAMPLE}; it runs at 1 all the same"
                )
    names = list(dict.fromkeys(order))
    return {name: given.get(name, _FIRST_EXAMPLE if k == 0 else _OTHER_EXAMPLE + k - 1) for k, name in enumerate(names)}


def _example(kind: InputType, sizes: Mapping[str, int]) -> torch.Tensor:
    dtype = DTYPES.get(kind.dtype.text)
    if dtype is None:
        remedy = nearest(kind.dtype.text, DTYPES, what="type")
        raise SutureError(Code.SCRIPT_MODEL, f"there is no type {kind.dtype.text!r}", remedy=remedy)
    shape = [sizes[s.name.text] if isinstance(s, SizeSymbol) else int(s.value) for s in kind.sizes]
    return torch.ones(shape, dtype=dtype)
