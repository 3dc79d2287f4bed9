"""How far two models are apart: per output the largest difference, absolute and relative, and the cosine."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

from suture.backends.onnxruntime import OnnxModel
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph
from suture.ir.semantics import evaluate

Model: TypeAlias = "nn.Module | Graph | str | Path"


@dataclass(frozen=True)
class Difference:
    """One output: how far the second model's is from the first's."""

    name: str
    shape: tuple[int, ...]
    max_abs: float
    relative: float  # the largest difference over the largest magnitude of the first
    cosine: float


@dataclass(frozen=True)
class Comparison:
    """All outputs; as text, a table."""

    outputs: tuple[Difference, ...]

    @property
    def max_abs(self) -> float:
        """The largest difference of all outputs."""
        return max((item.max_abs for item in self.outputs), default=0.0)

    @property
    def relative(self) -> float:
        """The largest relative difference of all outputs."""
        return max((item.relative for item in self.outputs), default=0.0)

    @property
    def cosine(self) -> float:
        """The smallest cosine of all outputs."""
        return min((item.cosine for item in self.outputs), default=1.0)

    def __str__(self) -> str:
        rows = [("output", "shape", "max |difference|", "relative", "cosine")]
        for item in self.outputs:
            shape = "x".join(map(str, item.shape)) or "scalar"
            rows.append((item.name, shape, f"{item.max_abs:.3e}", f"{item.relative:.3e}", f"{item.cosine:.8f}"))
        widths = [max(len(row[k]) for row in rows) for k in range(5)]
        aligned = [
            [cell.ljust(w) if k < 2 else cell.rjust(w) for k, (cell, w) in enumerate(zip(row, widths, strict=True))]
            for row in rows
        ]
        return "\n".join("  ".join(row).rstrip() for row in aligned)


def compare(a: Model, b: Model, inputs: Sequence[Any] | Mapping[str, Any]) -> Comparison:
    """Run two models on the same inputs and measure how far their outputs are apart, in evaluation mode.

    :param a: a module, a graph, or the path of an ONNX file; the measure's yardstick
    :param b: the other one
    :param inputs: tensors in order, or by name (keyword arguments of a module)
    :raises SutureError: COMPARE, if the outputs differ in number or shape; INPUT, if the inputs do not fit
    """
    first, second = _run(a, inputs), _run(b, inputs)
    if len(first) != len(second):
        raise SutureError(
            Code.COMPARE,
            f"{len(first)} outputs against {len(second)}",
            where=_names(first, second),
            remedy="both must return the same tensors",
        )
    return Comparison(
        tuple(_difference(name or other, x, y) for (name, x), (other, y) in zip(first, second, strict=True))
    )


def difference(name: str, a: torch.Tensor, b: torch.Tensor) -> Difference:
    """Measure how far one tensor is from another, in double precision.

    Values that are equal differ by nothing, infinities and NaN in the same place included; a NaN on one side is infinitely far.

    :raises SutureError: COMPARE, if their shapes differ
    """
    if a.shape != b.shape:
        raise SutureError(
            Code.COMPARE, f"shape {list(a.shape)} against {list(b.shape)}", where=name, remedy="the shapes must agree"
        )
    same = (a == b) | ((a != a) & (b != b))
    x, y = (_double(tensor)[~_like(same, tensor)] for tensor in (a, b))
    gap = (x - y).abs()
    max_abs = 0.0 if gap.numel() == 0 else math.inf if bool(gap.isnan().any()) else float(gap.max())
    whole, other = _double(a), _double(b)
    largest = float(whole[whole.isfinite()].abs().max()) if bool(whole.isfinite().any()) else 0.0
    relative = 0.0 if max_abs == 0 else max_abs / largest if largest else math.inf
    return Difference(name, tuple(a.shape), max_abs, relative, 1.0 if max_abs == 0 else _cosine(whole, other))


def _difference(name: str, a: torch.Tensor, b: torch.Tensor) -> Difference:
    return difference(name, a.detach().cpu(), b.detach().cpu())


def _double(tensor: torch.Tensor) -> torch.Tensor:
    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return real.to(torch.float64).reshape(-1)


def _like(same: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    flat = same.reshape(-1)
    return flat.repeat_interleave(2) if tensor.is_complex() else flat


def _cosine(x: torch.Tensor, y: torch.Tensor) -> float:
    finite = x.isfinite() & y.isfinite()
    x, y = x[finite], y[finite]
    lengths = float(x.norm()) * float(y.norm())
    if lengths == 0:
        return 1.0 if float(x.norm()) == float(y.norm()) else 0.0
    return max(-1.0, min(1.0, float(x @ y) / lengths))


def _names(first: list[tuple[str, torch.Tensor]], second: list[tuple[str, torch.Tensor]]) -> str:
    return " against ".join(", ".join(name or "?" for name, _ in side) or "nothing" for side in (first, second))


def _run(model: Model, inputs: Sequence[Any] | Mapping[str, Any]) -> list[tuple[str, torch.Tensor]]:
    if isinstance(model, nn.Module):
        return _run_module(model, inputs)
    if isinstance(model, Graph):
        names = [value.name for value in model.inputs]
        with torch.no_grad():
            return list(zip(model.output_names, evaluate(model, _arranged(inputs, names)), strict=True))
    loaded = OnnxModel(model)
    return list(zip(loaded.outputs, loaded.run(_arranged(inputs, list(loaded.inputs))), strict=True))


def _arranged(
    inputs: Sequence[Any] | Mapping[str, Any], names: list[str]
) -> list[torch.Tensor] | dict[str, torch.Tensor]:
    """The tensors of nested inputs: by name where the names are the model's, else in order."""
    from torch.utils import _pytree

    if isinstance(inputs, Mapping) and any(name in inputs for name in names):
        return {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}
    nested = dict(inputs) if isinstance(inputs, Mapping) else list(inputs)
    return [leaf for leaf in _pytree.tree_leaves(nested) if isinstance(leaf, torch.Tensor)]


def _run_module(module: nn.Module, inputs: Sequence[Any] | Mapping[str, Any]) -> list[tuple[str, torch.Tensor]]:
    from torch.utils import _pytree

    name = type(module).__name__
    with torch.no_grad(), _evaluating(module):
        try:
            result = module(**inputs) if isinstance(inputs, Mapping) else module(*inputs)
        except (TypeError, RuntimeError, ValueError, IndexError) as error:
            lines = str(error).strip().splitlines()
            said = lines[0] if lines else type(error).__name__
            raise SutureError(
                Code.INPUT, f"the module stopped: {said}", where=name, remedy="give inputs that it takes"
            ) from error
    leaves, _ = _pytree.tree_flatten_with_path(result)
    found = [(_path(keys), leaf) for keys, leaf in leaves if isinstance(leaf, torch.Tensor)]
    if not found:
        raise SutureError(
            Code.COMPARE,
            f"it returns {type(result).__name__}",
            where=name,
            remedy="a module must return tensors",
        )
    return found


def _path(keys: Sequence[Any]) -> str:
    """`logits`, `hidden.0`; a single result has the name of the other side."""
    return ".".join(str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in keys)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; every submodule gets its own mode back."""
    modes = {child: child.training for child in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for child, training in modes.items():
            child.training = training
