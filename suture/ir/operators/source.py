"""Operators that make values: constants, ranges; and the opaque operator, for what has no notation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch

from suture.ir.errors import Code, SutureError
from suture.ir.notation import Instance, Role, Term
from suture.ir.operator import REQUIRED, Call, FunctionClass, declare
from suture.ir.operators.layout import make_instance
from suture.ir.sizes import Dim

OTHER = FunctionClass.OTHER


def _declared_dtype(call: Call) -> torch.dtype:
    dtype = call.attributes["dtype"]
    assert isinstance(dtype, torch.dtype)
    return dtype


def _full_instance(call: Call) -> Instance:
    shape = call.result_shapes(1)[0]
    letters: list[Term] = [f"d{k}" for k in range(len(shape))]
    return make_instance([], [letters], {f"d{k}": size for k, size in enumerate(shape)})


def _full(*, value: Any, dtype: torch.dtype, shape: Sequence[int]) -> torch.Tensor:
    return torch.full(tuple(shape), value, dtype=dtype)


declare(
    "full",
    "-> y[*d]",
    _full,
    attributes={"value": 0, "dtype": torch.float32},
    function=OTHER,
    build=_full_instance,
    dtype=_declared_dtype,
    declared=True,
    doc="One value everywhere, in the declared shape.",
)


def _arange(*, start: Any, step: Any, dtype: torch.dtype, shape: Sequence[int]) -> torch.Tensor:
    if not shape[0]:
        return torch.empty(0, dtype=dtype)
    # Half a step before the end: rounding cannot add or lose an element. Integers need no such care.
    whole = isinstance(start, int) and isinstance(step, int)
    return torch.arange(start, start + (shape[0] if whole else shape[0] - 0.5) * step, step, dtype=dtype)


def _arange_instance(call: Call) -> Instance:
    return make_instance([], [["d0"]], {"d0": call.result_shapes(1)[0][0]}, {"d0": Role.ORDERED})


declare(
    "arange",
    "-> y[!d]",
    _arange,
    attributes={"start": 0, "step": 1, "dtype": torch.int64},
    function=OTHER,
    build=_arange_instance,
    dtype=_declared_dtype,
    declared=True,
    doc="start, start + step, ... of the declared length.",
)


def _opaque_instance(call: Call) -> Instance:
    """Nothing is known: every dimension of every operand and result is an ordered letter of its own."""
    sizes: dict[str, Dim] = {}
    inputs: list[list[Term] | None] = []
    for k, type_ in enumerate(call.types):
        if type_ is None:
            inputs.append(None)
            continue
        inputs.append([f"x{k}d{i}" for i in range(type_.rank)])
        sizes |= {f"x{k}d{i}": size for i, size in enumerate(type_.shape)}
    outputs: list[list[Term]] = []
    for k, shape in enumerate(call.result_shapes(0)):
        outputs.append([f"y{k}d{i}" for i in range(len(shape))])
        sizes |= {f"y{k}d{i}": size for i, size in enumerate(shape)}
    return make_instance(inputs, outputs, sizes, dict.fromkeys(sizes, Role.ORDERED))


def resolve_target(target: str) -> Any:
    """The torch operator overload that `target` (`aten.foo.default`) names.

    :raises SutureError: OPERATOR, if torch has none of that name
    """
    namespace, _, rest = target.partition(".")
    name, _, overload = rest.partition(".")
    found: Any = getattr(getattr(getattr(torch.ops, namespace, None), name, None), overload or "default", None)
    if found is None:
        raise SutureError(
            Code.OPERATOR, f"torch has no operator {target}", remedy="import the library that registers it"
        )
    return found


def _opaque(
    *operands: Any, target: str, arguments: str, dtypes: Sequence[torch.dtype], sizes: Sequence[int], shapes: Sequence[Sequence[int]]
) -> Any:  # fmt: skip
    """Call the target with its argument template: `{"$": k}` stands for operand k, `{"dtype": ..}` for a dtype, `{"size": k}` for `sizes[k]`."""
    template = json.loads(arguments)

    def fill(item: Any) -> Any:
        match item:
            case {"$": index}:
                return operands[index]
            case {"size": index}:
                return sizes[index]
            case {"dtype": name}:
                return getattr(torch, name)
            case {"device": name}:
                return torch.device(name)
            case {"layout": _}:
                return torch.strided
            case {"memory_format": name}:
                return getattr(torch, name)
            case list():
                return [fill(part) for part in item]
            case _:
                return item

    result = resolve_target(target)(
        *fill(template["args"]), **{key: fill(value) for key, value in template["kwargs"].items()}
    )
    if len(shapes) == 1 and isinstance(result, torch.Tensor):
        return result
    return tuple(result)


def _opaque_dtypes(call: Call) -> tuple[torch.dtype, ...]:
    dtypes = call.attributes["dtypes"]
    assert isinstance(dtypes, tuple)
    return tuple(dtype for dtype in dtypes if isinstance(dtype, torch.dtype))


declare(
    "opaque",
    "x[*a]? -> y[*b]",
    _opaque,
    attributes={"target": REQUIRED, "arguments": REQUIRED, "dtypes": REQUIRED, "sizes": ()},
    function=OTHER,
    build=_opaque_instance,
    dtype=_opaque_dtypes,
    declared=True,
    doc="A torch operator without notation: it runs, and pins every axis it touches.",
)
