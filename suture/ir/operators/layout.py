"""Operators that regroup and repeat dimensions: reshape, permute, expand, repeat, pixel shuffle; and how they write instances."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F

from suture.ir.errors import Code, SutureError
from suture.ir.notation import Binding, Instance, Product, Role, Term, letters_of
from suture.ir.operator import REQUIRED, Call, FunctionClass, declare
from suture.ir.sizes import Dim, exact_quotient, product

LINEAR, OTHER = FunctionClass.LINEAR, FunctionClass.OTHER


def make_instance(
    inputs: Sequence[Sequence[Term] | None],
    outputs: Sequence[Sequence[Term]],
    sizes: dict[str, Dim],
    roles: dict[str, Role] | None = None,
) -> Instance:
    """An instance from terms, with roles by membership where none is given."""
    known = dict(roles or {})
    produced = {x for dims in outputs for term in dims for x in letters_of(term)}
    for dims in (*inputs, *outputs):
        for term in dims or ():
            for letter in letters_of(term):
                known.setdefault(letter, Role.FREE if letter in produced else Role.CONTRACTED)
    return Instance(
        tuple(None if d is None else tuple(d) for d in inputs), tuple(tuple(d) for d in outputs), sizes, known
    )


def plain_letters(shape: Sequence[Dim], prefix: str = "d") -> tuple[list[Term], dict[str, Dim]]:
    """One letter a dimension; a dimension of size 1 is a letter too."""
    letters: list[Term] = [f"{prefix}{k}" for k in range(len(shape))]
    return letters, {f"{prefix}{k}": size for k, size in enumerate(shape)}


# reshape


def _reshape(x: torch.Tensor, *, shape: Sequence[int]) -> torch.Tensor:
    return torch.reshape(x, tuple(shape))


def _reshape_instance(call: Call) -> Instance:
    """Cut both shapes at their common cumulative sizes; what does not nest becomes ordered letters of its own."""
    source, target = call.shape(0), call.result_shapes(1)[0]
    if product(source) != product(target):
        raise SutureError(Code.SHAPE, f"[{', '.join(map(str, source))}] cannot be read as [{', '.join(map(str, target))}]", where=call.where,
                          remedy="the number of elements must stay")  # fmt: skip
    left: list[Term] = [1] * len(source)
    right: list[Term] = [1] * len(target)
    sizes: dict[str, Dim] = {}
    roles: dict[str, Role] = {}
    for run_left, run_right in matching_runs(source, target):
        factors = _common_factors([source[i] for i in run_left], [target[i] for i in run_right])
        if factors is None:
            for side, run, dims in ((left, run_left, source), (right, run_right, target)):
                for i in run:
                    letter = f"a{len(sizes)}"
                    side[i], sizes[letter], roles[letter] = letter, dims[i], Role.ORDERED
            continue
        letters = [f"a{len(sizes) + k}" for k in range(len(factors))]
        sizes.update(zip(letters, factors, strict=True))
        for side, run, dims in ((left, run_left, source), (right, run_right, target)):
            position = 0
            for i in run:
                start, reached = position, product(())
                while reached != dims[i]:
                    reached = reached * factors[position]
                    position += 1
                group = tuple(letters[start:position])
                side[i] = group[0] if len(group) == 1 else Product(group)
    return make_instance([left], [right], sizes, roles)


def matching_runs(source: Sequence[Dim], target: Sequence[Dim]) -> Iterable[tuple[list[int], list[int]]]:
    """Pair up the shortest runs of dimensions whose products agree; dimensions of size 1 belong to none."""
    left = [i for i, size in enumerate(source) if size != 1]
    right = [i for i, size in enumerate(target) if size != 1]
    while left or right:
        run_left, run_right = left[:1], right[:1]
        left, right = left[1:], right[1:]
        a, b = product([source[i] for i in run_left]), product([target[i] for i in run_right])
        while a != b:
            take_left = _smaller(a, b) if left and right else bool(left)
            if take_left and left:
                a = a * source[left[0]]
                run_left.append(left.pop(0))
            elif right:
                b = b * target[right[0]]
                run_right.append(right.pop(0))
            else:
                break
        yield run_left, run_right


def _smaller(a: Dim, b: Dim) -> bool:
    if isinstance(a, int) and isinstance(b, int):
        return a < b
    return exact_quotient(b, a) is not None or exact_quotient(a, b) is None


def _common_factors(left: Sequence[Dim], right: Sequence[Dim]) -> list[Dim] | None:
    """The finest factors that both runs are products of, or None where their cumulative sizes do not nest."""
    factors: list[Dim] = []
    a, b = list(left), list(right)
    while a and b:
        if a[0] == b[0]:
            factors.append(a.pop(0))
            b.pop(0)
            continue
        first, second = (a, b) if exact_quotient(b[0], a[0]) is not None else (b, a)
        rest = exact_quotient(second[0], first[0])
        if rest is None or first[0] == 0:
            return None
        factors.append(first.pop(0))
        second[0] = rest
    return factors if not a and not b else None


declare(
    "reshape", "x[n, h*d] -> y[n, h, d]", _reshape, function=LINEAR, build=_reshape_instance, declared=True,
    doc="Row-major regrouping to the declared shape; dimensions are products of the factors both shapes share.",
)  # fmt: skip


# permute, expand, repetition


def _permute(x: torch.Tensor, *, dims: Sequence[int]) -> torch.Tensor:
    return torch.permute(x, tuple(dims))


def _permute_instance(call: Call) -> Instance:
    letters, sizes = plain_letters(call.shape(0))
    order = [dim % max(len(letters), 1) for dim in call.ints("dims")]
    if sorted(order) != list(range(len(letters))):
        raise SutureError(
            Code.SHAPE,
            f"dims={tuple(order)} is no order of {len(letters)} dimensions",
            where=call.where,
            remedy="name each dimension once",
        )
    return make_instance([letters], [[letters[dim] for dim in order]], sizes)


declare(
    "permute",
    "x[n, c, h] -> y[n, h, c]",
    _permute,
    attributes={"dims": REQUIRED},
    function=LINEAR,
    build=_permute_instance,
    doc="Reorders dimensions.",
)


def _expand(x: torch.Tensor, *, shape: Sequence[int]) -> torch.Tensor:
    return x.expand(tuple(shape))


def _expand_instance(call: Call) -> Instance:
    """A dimension that is repeated reads as 1 on the left and as a fresh letter on the right."""
    source, target = call.shape(0), call.result_shapes(1)[0]
    letters, sizes = plain_letters(target)
    offset = len(target) - len(source)
    if offset < 0 or any(size not in (1, target[offset + i]) for i, size in enumerate(source)):
        raise SutureError(
            Code.SHAPE,
            f"{call.type(0)} does not expand to [{', '.join(map(str, target))}]",
            where=call.where,
            remedy="only dimensions of size 1 repeat",
        )
    left: list[Term] = [
        1 if size == 1 and target[offset + i] != 1 else letters[offset + i] for i, size in enumerate(source)
    ]
    return make_instance([left], [letters], sizes)


declare(
    "expand",
    "x[*d] -> y[*b, *d]",
    _expand,
    function=LINEAR,
    build=_expand_instance,
    declared=True,
    doc="Repeats dimensions of size 1 to the declared shape.",
)


def _repeat(x: torch.Tensor, *, repeats: Sequence[int]) -> torch.Tensor:
    return x.repeat(tuple(repeats))


def _repeat_instance(call: Call) -> Instance:
    repeats = call.attributes["repeats"]
    assert isinstance(repeats, tuple)
    letters, sizes = plain_letters(call.shape(0))
    if len(repeats) < len(letters):
        raise SutureError(
            Code.SHAPE,
            f"repeats={repeats} for {call.type(0)}",
            where=call.where,
            remedy="give one number a dimension, or more",
        )
    offset = len(repeats) - len(letters)
    outputs: list[Term] = []
    for k, count in enumerate(repeats):
        inner = letters[k - offset] if k >= offset else None
        if count == 1 and inner is not None:
            outputs.append(inner)
            continue
        sizes[f"k{k}"] = count  # type: ignore[assignment]
        outputs.append(f"k{k}" if inner is None else Product((f"k{k}", inner)))
    return make_instance([letters], [outputs], sizes)


declare(
    "repeat",
    "x[d] -> y[k*d]",
    _repeat,
    attributes={"repeats": REQUIRED},
    function=LINEAR,
    build=_repeat_instance,
    doc="Tiles each dimension.",
)


def _repeat_interleave(x: torch.Tensor, *, dim: int, repeats: int) -> torch.Tensor:
    return torch.repeat_interleave(x, repeats, dim)


def _repeat_interleave_instance(call: Call) -> Instance:
    dim, letters_sizes = call.dim(), plain_letters(call.shape(0))
    letters, sizes = letters_sizes
    sizes["k"] = call.ints("repeats")[0]
    outputs = list(letters)
    outputs[dim] = Product((letters[dim], "k"))
    return make_instance([letters], [outputs], sizes)


declare(
    "repeat_interleave", "x[*a, d, *b] -> y[*a, d*k, *b]", _repeat_interleave, attributes={"dim": REQUIRED, "repeats": REQUIRED}, function=LINEAR,
    build=_repeat_interleave_instance, doc="Repeats each index of a dimension in place.",
)  # fmt: skip


def _pixel_shuffle(x: torch.Tensor, *, factor: int) -> torch.Tensor:
    return F.pixel_shuffle(x, factor)


def _pixel_unshuffle(x: torch.Tensor, *, factor: int) -> torch.Tensor:
    return F.pixel_unshuffle(x, factor)


def _factor(call: Call) -> Binding:
    factor = call.ints("factor")[0]
    return Binding(sizes={"r": factor, "s": factor})


declare(
    "pixel_shuffle",
    "x[*n, c*r*s, h, w] -> y[*n, c, h*r, w*s]",
    _pixel_shuffle,
    attributes={"factor": REQUIRED},
    function=LINEAR,
    bind=_factor,
)
declare(
    "pixel_unshuffle",
    "x[*n, c, h*r, w*s] -> y[*n, c*r*s, h, w]",
    _pixel_unshuffle,
    attributes={"factor": REQUIRED},
    function=LINEAR,
    bind=_factor,
)
