"""Operators that join, cut, pad and reorder along a dimension: concatenation and its parts, padding, roll and flip."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from suture.ir.errors import Code, SutureError
from suture.ir.notation import Binding, Instance, Join, Role, Term
from suture.ir.operator import REQUIRED, Call, FunctionClass, declare
from suture.ir.operators.layout import make_instance, plain_letters
from suture.ir.sizes import Dim, Size

LINEAR, OTHER = FunctionClass.LINEAR, FunctionClass.OTHER

# concatenation and its parts


def _concat(*parts: torch.Tensor, dim: int) -> torch.Tensor:
    return torch.cat(parts, dim)


def _concat_instance(call: Call) -> Instance:
    dim = call.dim()
    letters, sizes = plain_letters(call.shape(0))
    inputs: list[list[Term]] = []
    for k in range(len(call.types)):
        shape = call.shape(k)
        wrong = len(shape) != len(letters) or any(size != sizes[f"d{i}"] for i, size in enumerate(shape) if i != dim)
        if wrong:
            raise SutureError(Code.SHAPE, f"{call.type(k)} does not join {call.type(0)} along dimension {dim}", where=call.where,
                              remedy="all other dimensions must agree")  # fmt: skip
        sizes[f"p{k}"] = shape[dim]
        inputs.append([*letters[:dim], f"p{k}", *letters[dim + 1 :]])
    parts: tuple[Term, ...] = tuple(f"p{k}" for k in range(len(inputs)))
    joined: Term = Join(parts) if len(parts) > 1 else parts[0]
    del sizes[f"d{dim}"]
    return make_instance(inputs, [[*letters[:dim], joined, *letters[dim + 1 :]]], sizes)


def _promoted(call: Call) -> torch.dtype:
    dtype = call.type(0).dtype
    for k in range(1, len(call.types)):
        dtype = torch.promote_types(dtype, call.type(k).dtype)
    return dtype


declare(
    "concat",
    "x[*a, p, *b], z[*a, q, *b] -> y[*a, p|q, *b]",
    _concat,
    attributes={"dim": 0},
    function=LINEAR,
    build=_concat_instance,
    dtype=_promoted,
    doc="Joins any number of values along a dimension.",
)


def _only_dim_changes(call: Call, target: Sequence[Dim], dim: int) -> None:
    source = call.shape(0)
    if len(target) != len(source) or any(
        a != b for k, (a, b) in enumerate(zip(source, target, strict=True)) if k != dim
    ):
        raise SutureError(Code.SHAPE, f"[{', '.join(map(str, target))}] as a part of {call.type(0)}", where=call.where,
                          remedy=f"only dimension {dim} may differ")  # fmt: skip


def _split(x: torch.Tensor, *, dim: int, shapes: Sequence[Sequence[int]]) -> tuple[torch.Tensor, ...]:
    return torch.split(x, [shape[dim] for shape in shapes], dim)


def _split_instance(call: Call) -> Instance:
    dim, parts = call.dim(), call.result_shapes(0)
    letters, sizes = plain_letters(call.shape(0))
    total: Dim = 0
    for shape in parts:
        _only_dim_changes(call, shape, dim)
    for k, shape in enumerate(parts):
        sizes[f"p{k}"] = shape[dim]
        total = total + shape[dim]
    if total != sizes.pop(f"d{dim}"):
        raise SutureError(
            Code.SHAPE,
            f"parts of {total} for dimension {dim} of {call.type(0)}",
            where=call.where,
            remedy="the parts must sum to the whole",
        )
    names: tuple[Term, ...] = tuple(f"p{k}" for k in range(len(parts)))
    whole: Term = Join(names) if len(names) > 1 else names[0]
    return make_instance(
        [[*letters[:dim], whole, *letters[dim + 1 :]]],
        [[*letters[:dim], name, *letters[dim + 1 :]] for name in names],
        sizes,
    )


declare("split", "x[*a, p|q, *b] -> y[*a, p, *b], z[*a, q, *b]", _split, attributes={"dim": 0}, function=LINEAR, build=_split_instance, declared=True,
        doc="Cuts a dimension into parts of the declared sizes, one result each.")  # fmt: skip


def _slice(x: torch.Tensor, *, dim: int, start: int, step: int, shape: Sequence[int]) -> torch.Tensor:
    index = [slice(None)] * x.ndim
    index[dim] = slice(start, start + (shape[dim] - 1) * step + 1 if shape[dim] else start, step)
    return x[tuple(index)]


def _slice_instance(call: Call) -> Instance:
    """`p|q|r` with the middle kept; with a step other than 1 the dimension is ordered."""
    dim, target, start, step = call.dim(), call.result_shapes(1)[0], call.attributes["start"], call.ints("step")[0]
    assert isinstance(start, int | Size)
    letters, sizes = plain_letters(call.shape(0))
    _only_dim_changes(call, target, dim)
    size, length = sizes[f"d{dim}"], target[dim]
    reached = size - ((length - 1) * step + start + 1) if length != 0 else size - start
    if any(isinstance(room, int) and room < 0 for room in (start, reached)):
        raise SutureError(
            Code.SHAPE,
            f"{length} positions from {start} by {step} of {size}",
            where=call.where,
            remedy="the range must lie inside",
        )
    outputs = list(letters)
    if step != 1 or (start == 0 and length == size):
        outputs[dim] = f"d{dim}" if length == size else "q"
        sizes["q"] = length
        roles = {f"d{dim}": Role.ORDERED, "q": Role.ORDERED} if step != 1 else {}
        return make_instance([letters], [outputs], sizes, roles)
    rest = size - (length + start)
    sizes |= {"p": start, "q": length, "r": rest}
    pieces: tuple[Term, ...] = tuple(x for x in ("p", "q", "r") if sizes[x] != 0 or x == "q")
    del sizes[f"d{dim}"]
    inputs = list(letters)
    inputs[dim] = Join(pieces) if len(pieces) > 1 else "q"
    outputs[dim] = "q"
    return make_instance([inputs], [outputs], sizes)


declare(
    "slice", "x[*a, p|q|r, *b] -> y[*a, q, *b]", _slice, attributes={"dim": 0, "start": 0, "step": 1}, function=LINEAR, build=_slice_instance,
    declared=True, letters={"start": "p"}, doc="A range of a dimension; its length is the declared one.",
)  # fmt: skip


def _select(x: torch.Tensor, *, dim: int, index: int) -> torch.Tensor:
    return torch.select(x, dim, index)


def _select_instance(call: Call) -> Instance:
    dim, index = call.dim(), call.attributes["index"]
    letters, sizes = plain_letters(call.shape(0))
    size = sizes.get(f"d{dim}", 0)
    if isinstance(size, int) and isinstance(index, int) and not -size <= index < size:
        raise SutureError(
            Code.SHAPE, f"index {index} of {size}", where=call.where, remedy=f"{-size} to {size - 1} would be right"
        )
    return make_instance([letters], [[*letters[:dim], *letters[dim + 1 :]]], sizes, {f"d{dim}": Role.ORDERED})


declare("select", "x[*a, !s, *b] -> y[*a, *b]", _select, attributes={"dim": 0, "index": 0}, function=LINEAR, build=_select_instance,
        doc="One index of a dimension, which goes away.")  # fmt: skip


# order along a dimension


def _along(call: Call) -> Instance:
    dims = call.ints("dims")
    letters, sizes = plain_letters(call.shape(0))
    return make_instance([letters], [letters], sizes, {f"d{dim % len(letters)}": Role.ORDERED for dim in dims})


def _roll(x: torch.Tensor, *, shifts: Sequence[int], dims: Sequence[int]) -> torch.Tensor:
    return torch.roll(x, tuple(shifts), tuple(dims))


def _flip(x: torch.Tensor, *, dims: Sequence[int]) -> torch.Tensor:
    return torch.flip(x, tuple(dims))


declare(
    "roll",
    "x[*a, !h, *b] -> y[*a, h, *b]",
    _roll,
    attributes={"shifts": REQUIRED, "dims": REQUIRED},
    function=LINEAR,
    build=_along,
    doc="Cyclic shift.",
)
declare(
    "flip",
    "x[*a, !h, *b] -> y[*a, h, *b]",
    _flip,
    attributes={"dims": REQUIRED},
    function=LINEAR,
    build=_along,
    doc="Reverses dimensions.",
)


def _pad(x: torch.Tensor, *, pads: Sequence[int], mode: str, value: float | None) -> torch.Tensor:
    flat = [amount for before_after in reversed(_pairs(pads)) for amount in before_after]
    while len(flat) >= 2 and flat[-2:] == [0, 0] and len(flat) > 2 * (1 if mode == "constant" else x.ndim - 2):
        flat = flat[:-2]
    return F.pad(x, flat, mode) if value is None else F.pad(x, flat, mode, value)


def _pairs(pads: Sequence[int]) -> list[tuple[int, int]]:
    half = len(pads) // 2
    return list(zip(pads[:half], pads[half:], strict=True))


def _pad_instance(call: Call) -> Instance:
    """Constant padding of a dimension is a concatenation with fresh, constant parts; any other mode is ordered. A negative amount crops."""
    letters, sizes = plain_letters(call.shape(0))
    pads = call.ints("pads")
    if len(pads) != 2 * len(letters):
        raise SutureError(
            Code.SHAPE,
            f"pads={pads} for a value of rank {len(letters)}",
            where=call.where,
            remedy="all amounts before, then all after",
        )
    outputs = list(letters)
    roles: dict[str, Role] = {}
    for k, (before, after) in enumerate(_pairs(pads)):
        if not before and not after:
            continue
        if call.attributes["mode"] != "constant" or before < 0 or after < 0:
            sizes[f"q{k}"] = sizes[f"d{k}"] + before + after
            roles |= {f"d{k}": Role.ORDERED, f"q{k}": Role.ORDERED}
            outputs[k] = f"q{k}"
            continue
        sizes |= {f"p{k}": before, f"r{k}": after}
        outputs[k] = Join(tuple(x for x in (f"p{k}", f"d{k}", f"r{k}") if sizes[x] != 0))
        roles |= {f"p{k}": Role.ORDERED, f"r{k}": Role.ORDERED}
    return make_instance([letters], [outputs], sizes, roles)


declare(
    "pad",
    "x[*a, h, *b] -> y[*a, p|h|r, *b]",
    _pad,
    attributes={"pads": REQUIRED, "mode": "constant", "value": None},
    function=OTHER,
    build=_pad_instance,
    doc="Padding; `pads` holds the amounts before every dimension, then those after.",
)


def _triangle(x: torch.Tensor, *, diagonal: int, upper: bool) -> torch.Tensor:
    return torch.triu(x, diagonal) if upper else torch.tril(x, diagonal)


def _triangle_bind(call: Call) -> Binding:
    return Binding({"b": call.type(0).rank - 2})


declare("triangle", "x[*b, !m, !n] -> y[*b, m, n]", _triangle, attributes={"diagonal": 0, "upper": False}, function=LINEAR, bind=_triangle_bind,
        doc="Keeps one side of a diagonal.")  # fmt: skip
