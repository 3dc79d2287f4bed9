"""Views as access functions: where an element of a regrouped, cut, joined, padded or looked-up value stands in what it was made from.

Regrouping follows from index notation: the result's dimensions are terms over letters, an index of the result gives each letter a value, and the
operand's terms say where that is. What notation leaves to attributes (where a slice starts, how a roll turns) stands beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TypeAlias

from suture.codegen.indices import Indices, clamped
from suture.codegen.scalars import compute_type
from suture.ir.graph import Node, Value
from suture.ir.kernel import Expression, Literal, apply, cast
from suture.ir.notation import Instance, Join, Product, Term
from suture.ir.sizes import Dim, Size, product

Index: TypeAlias = "tuple[Expression, ...]"


class Access:
    """How a view reads: index arithmetic, sizes, and what reads an element of an operand.

    :param size: a size as an expression of the kernel
    :param element: an element of a value, in the type that it is computed in
    :param guarded: a context in which elements are read under a condition only
    """

    def __init__(
        self,
        indices: Indices,
        size: Callable[[Dim], Expression],
        element: Callable[[Value, Index], Expression],
        guarded: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.indices = indices
        self.size = size
        self.element = element
        self.guarded = guarded

    def read(self, value: Value, index: Index) -> Expression:
        """An element of what a view makes."""
        node = value.producer
        assert node is not None
        return VIEWS[node.operator.name](self, node, value.index, index)

    def operand(self, node: Node, position: int) -> Value:
        """An operand that is there."""
        found = node.inputs[position]
        assert found is not None
        return found


Rule: TypeAlias = "Callable[[Access, Node, int, Index], Expression]"
VIEWS: dict[str, Rule] = {}
"""Operators that only say where an element is -> how their elements are read."""


def is_view(node: Node) -> bool:
    """Whether a node moves or looks up elements without computing any."""
    rule = VIEWS.get(node.operator.name)
    return rule is not None and (node.operator.name not in _REFUSES or not _REFUSES[node.operator.name](node))


def free_view(node: Node) -> bool:
    """Whether reading through the node costs nothing but index arithmetic: one operand, no look-up, no choice."""
    return node.operator.name in _FREE


_FREE = frozenset({"reshape", "permute", "expand", "split", "slice", "select", "pixel_shuffle", "pixel_unshuffle"})
_REFUSES: dict[str, Callable[[Node], bool]] = {
    "pad": lambda node: node.attributes["mode"] not in ("constant", "reflect", "replicate"),
    "index": lambda node: any(value is None for value in node.inputs),
}


def _rule(*names: str) -> Callable[[Rule], Rule]:
    def enter(rule: Rule) -> Rule:
        VIEWS.update(dict.fromkeys(names, rule))
        return rule

    return enter


@_rule("reshape", "permute", "expand", "repeat", "repeat_interleave", "pixel_shuffle", "pixel_unshuffle")
def _regrouped(access: Access, node: Node, result: int, index: Index) -> Expression:
    """The letters' values, and the operand's terms over them."""
    instance = node.operator.instance(node)
    if node.operator.name == "reshape" and _is_ordered(instance):
        return _reshaped(access, node, index)
    letters: dict[str, Expression] = {}
    for term, at in zip(instance.outputs[result], index, strict=True):
        _solve(access, instance, term, at, letters)
    terms = instance.inputs[0]
    assert terms is not None
    place = tuple(_placed(access, instance, term, letters) for term in terms)
    source = access.operand(node, 0)
    fixed = tuple(Literal(0) if dim == 1 else at for dim, at in zip(source.shape, place, strict=True))
    return access.element(source, fixed)


def is_regrouping(node: Node) -> bool:
    """Whether a node's result has the operand's elements, each once, at other indices."""
    name, source = node.operator.name, node.inputs[0] if node.inputs else None
    if name == "expand" and source is not None:
        return product(node.output.shape) == product(source.shape)
    return name in ("reshape", "permute", "pixel_shuffle", "pixel_unshuffle")


def regrouped(access: Access, node: Node, index: Index, *, forwards: bool) -> Index:
    """Where an element of a regrouping's operand stands in its result, or the other way round."""
    source, result = access.operand(node, 0), node.output
    instance = node.operator.instance(node)
    from_, to = (source, result) if forwards else (result, source)
    if node.operator.name == "reshape" and _is_ordered(instance):
        number = access.indices.horner(index, [access.size(dim) for dim in from_.shape])
        return tuple(access.indices.digits(number, [access.size(dim) for dim in to.shape]))
    given, wanted = instance.inputs[0], instance.outputs[0]
    assert given is not None
    given, wanted = (given, wanted) if forwards else (wanted, given)
    letters: dict[str, Expression] = {letter: Literal(0) for letter, size in instance.sizes.items() if size == 1}
    for term, at in zip(given, index, strict=True):
        _solve(access, instance, term, at, letters)
    place = tuple(_placed(access, instance, term, letters) for term in wanted)
    return tuple(Literal(0) if dim == 1 else at for dim, at in zip(to.shape, place, strict=True))


def _is_ordered(instance: Instance) -> bool:
    """Whether a reshape's factors do not nest: its letters on the two sides differ."""
    letters = {
        x for dims in instance.inputs if dims is not None for term in dims if isinstance(term, str) for x in (term,)
    }
    return any(
        isinstance(term, str) and instance.roles[term].value == "ordered" for term in instance.outputs[0]
    ) or any(instance.roles[x].value == "ordered" for x in letters)


def _reshaped(access: Access, node: Node, index: Index) -> Expression:
    """By the element's number in row-major order."""
    source = access.operand(node, 0)
    number = access.indices.horner(index, [access.size(dim) for dim in node.output.shape])
    return access.element(source, tuple(access.indices.digits(number, [access.size(dim) for dim in source.shape])))


def _solve(access: Access, instance: Instance, term: Term, at: Expression, letters: dict[str, Expression]) -> None:
    match term:
        case str():
            letters[term] = at
        case Product(terms):
            sizes = [access.size(instance.size(part)) for part in terms]
            for part, digit in zip(terms, access.indices.digits(at, sizes), strict=True):
                _solve(access, instance, part, digit, letters)


def _placed(access: Access, instance: Instance, term: Term, letters: dict[str, Expression]) -> Expression:
    match term:
        case str():
            return letters[term]
        case Product(terms):
            sizes = [access.size(instance.size(part)) for part in terms]
            return access.indices.horner([_placed(access, instance, part, letters) for part in terms], sizes)
    return Literal(0)


@_rule("concat")
def _concat(access: Access, node: Node, _: int, index: Index) -> Expression:
    """Each part behind those before it; the parts differ along one dimension, and are found by halving it."""
    instance = node.operator.instance(node)
    dim = next((k for k, term in enumerate(instance.outputs[0]) if isinstance(term, Join)), 0)
    before: Dim = 0
    pieces: list[tuple[Expression, Expression]] = []  # below which index, and what stands there
    for value in node.inputs:
        assert value is not None
        if value.shape[dim] == 0:
            continue
        place = (*index[:dim], access.indices.short(index[dim] - access.size(before)), *index[dim + 1 :])
        before = before + value.shape[dim]
        with access.guarded():
            pieces.append((access.size(before), cast(access.element(value, place), compute_type(node.output.dtype))))
    return _halved(index[dim], pieces)


def _halved(at: Expression, pieces: Sequence[tuple[Expression, Expression]]) -> Expression:
    """What stands at an index, of pieces that each end below one; nested as deep as the logarithm of their number."""
    if len(pieces) == 1:
        return pieces[0][1]
    half = len(pieces) // 2
    return apply("select", at < pieces[half - 1][0], _halved(at, pieces[:half]), _halved(at, pieces[half:]))


@_rule("split")
def _split(access: Access, node: Node, result: int, index: Index) -> Expression:
    source, dim = access.operand(node, 0), _dim(node)
    before: Dim = 0
    for value in node.outputs[:result]:
        before = before + value.shape[dim]
    place = (*index[:dim], access.indices.short(index[dim] + access.size(before)), *index[dim + 1 :])
    return access.element(source, place)


@_rule("slice")
def _slice(access: Access, node: Node, _: int, index: Index) -> Expression:
    source, dim = access.operand(node, 0), _dim(node)
    start, step = node.attributes["start"], node.attributes["step"]
    assert isinstance(start, int | Size) and isinstance(step, int)
    at = access.indices.short(access.size(start) + index[dim] * step)
    left = source.shape[dim] - (start + (node.output.shape[dim] - 1) * step + 1)
    if not (left >= 0 if isinstance(left, int) else all(factor >= 0 for _, factor in left.terms)):
        at = apply(
            "min", at, access.size(source.shape[dim]) - 1
        )  # a symbol is no larger than what it is cut from, or torch had refused
    return access.element(source, (*index[:dim], at, *index[dim + 1 :]))


@_rule("select")
def _select(access: Access, node: Node, _: int, index: Index) -> Expression:
    """One index of a dimension; of a symbolic size it is not known that it reaches so far."""
    source, dim, chosen = access.operand(node, 0), _dim(node), node.attributes["index"]
    assert isinstance(chosen, int | Size)
    behind = isinstance(chosen, int) and chosen < 0
    at, size = access.size(source.shape[dim] + chosen if behind else chosen), access.size(source.shape[dim])
    place = (*index[:dim], at, *index[dim:])
    if access.indices.is_inside(at, size):
        return access.element(source, place)
    with access.guarded():
        found = access.element(source, place)
    inside = Literal(0) <= at if behind else at < size
    return apply("select", inside, found, Literal(0, found.dtype))


@_rule("roll")
def _roll(access: Access, node: Node, _: int, index: Index) -> Expression:
    source, place = access.operand(node, 0), list(index)
    for dim, shift in zip(_ints(node, "dims"), _ints(node, "shifts"), strict=True):
        size = source.shape[dim]
        turned = (size - shift % size) % size if isinstance(size, int) and size else size - shift
        place[dim] = (place[dim] + access.size(turned)) % access.size(size)
    return access.element(source, tuple(place))


@_rule("flip")
def _flip(access: Access, node: Node, _: int, index: Index) -> Expression:
    source, place = access.operand(node, 0), list(index)
    for dim in _ints(node, "dims"):
        place[dim] = access.indices.short(access.size(source.shape[dim]) - 1 - place[dim])
    return access.element(source, tuple(place))


@_rule("pad")
def _pad(access: Access, node: Node, _: int, index: Index) -> Expression:
    source, pads, mode = access.operand(node, 0), _ints(node, "pads"), node.attributes["mode"]
    half = len(pads) // 2
    place, inside = list(index), []
    for dim, (before, after) in enumerate(zip(pads[:half], pads[half:], strict=True)):
        if not before and not after:
            continue
        size, at = access.size(source.shape[dim]), index[dim] - before
        if mode == "constant":
            inside += [Literal(before) <= index[dim]] if before > 0 else []
            inside += [index[dim] < size + before] if after > 0 else []
        elif mode == "replicate":
            at = clamped(at, size)
        else:  # reflect: about the first and the last element
            at = apply("max", at, Literal(0) - at)
            at = apply("min", at, (size - 1) * 2 - at)
            at = clamped(at, size)
        place[dim] = access.indices.short(at) if mode == "constant" else at
    if not inside:
        return access.element(source, tuple(place))
    with access.guarded():
        found = access.element(source, tuple(place))
    condition = inside[0]
    for other in inside[1:]:
        condition = apply("and", condition, other)
    value = node.attributes["value"]
    return apply("select", condition, found, Literal(value if isinstance(value, int | float) else 0, found.dtype))


@_rule("triangle")
def _triangle(access: Access, node: Node, _: int, index: Index) -> Expression:
    found = access.element(access.operand(node, 0), index)
    diagonal = node.attributes["diagonal"]
    assert isinstance(diagonal, int)
    row, column = index[-2], index[-1]
    kept = row + diagonal <= column if node.attributes["upper"] else column <= row + diagonal
    return apply("select", kept, found, Literal(0, found.dtype))


@_rule("embedding")
def _embedding(access: Access, node: Node, _: int, index: Index) -> Expression:
    table, rows = access.operand(node, 0), access.operand(node, 1)
    at = _looked_up(access, rows, index[: rows.rank], table.shape[0], negative=False)
    return _where_there_are_any(access, table, (at, *index[rows.rank :]), [table.shape[0]])


@_rule("index")
def _index(access: Access, node: Node, _: int, index: Index) -> Expression:
    """Index operands broadcast together and stand where the dimensions stood that they index (in front, if those are apart)."""
    source, dims = access.operand(node, 0), [dim % access.operand(node, 0).rank for dim in _ints(node, "dims")]
    looked = [access.operand(node, 1 + k) for k in range(len(dims))]
    rank = max(value.rank for value in looked)
    adjacent = dims == list(range(dims[0], dims[0] + len(dims)))
    front = dims[0] if adjacent else 0
    inner, others = index[front : front + rank], [*index[:front], *index[front + rank :]]
    place: list[Expression] = []
    for dim in range(source.rank):
        if dim not in dims:
            place.append(others.pop(0))
            continue
        value = looked[dims.index(dim)]
        at = tuple(
            Literal(0) if size == 1 else each
            for size, each in zip(value.shape, inner[rank - value.rank :], strict=True)
        )
        place.append(_looked_up(access, value, at, source.shape[dim]))
    return _where_there_are_any(access, source, tuple(place), [source.shape[dim] for dim in dims])


@_rule("gather")
def _gather(access: Access, node: Node, _: int, index: Index) -> Expression:
    source, dim = access.operand(node, 0), _dim(node)
    at = _looked_up(access, access.operand(node, 1), index, source.shape[dim], negative=False)
    return _where_there_are_any(access, source, (*index[:dim], at, *index[dim + 1 :]), [source.shape[dim]])


def _looked_up(access: Access, value: Value, index: Index, size: Dim, *, negative: bool = True) -> Expression:
    """An index that data say, kept inside, for what was not checked before.

    :param negative: whether it may count from the end
    """
    at, limit = cast(access.element(value, index), Literal(0).dtype), access.size(size)
    if access.indices.is_inside(at, limit):
        return at
    return clamped(apply("select", at < 0, at + limit, at) if negative else at, limit)


def _where_there_are_any(access: Access, source: Value, place: Index, sizes: Sequence[Dim]) -> Expression:
    """What is looked up; zero where a symbolic size is none, so that there is nothing inside which an index could be kept."""
    unsure = [access.size(size) for size in sizes if not access.indices.is_inside(Literal(0), access.size(size))]
    if not unsure:
        return access.element(source, place)
    with access.guarded():
        found = access.element(source, place)
    condition = Literal(0) < unsure[0]
    for size in unsure[1:]:
        condition = apply("and", condition, Literal(0) < size)
    return apply("select", condition, found, Literal(0, found.dtype))


@_rule("full")
def _full(access: Access, node: Node, _: int, index: Index) -> Expression:
    value = node.attributes["value"]
    assert isinstance(value, bool | int | float)
    return Literal(value, compute_type(node.output.dtype))


@_rule("arange")
def _arange(access: Access, node: Node, _: int, index: Index) -> Expression:
    start, step, dtype = node.attributes["start"], node.attributes["step"], compute_type(node.output.dtype)
    if isinstance(start, int | Size) and isinstance(step, int | Size) and not isinstance(start, bool):
        return cast(access.indices.short(access.size(start) + index[0] * access.size(step)), dtype)
    assert isinstance(start, int | float) and isinstance(step, int | float)
    return cast(index[0], dtype) * Literal(step, dtype) + Literal(start, dtype)


def _dim(node: Node) -> int:
    dim, source = node.attributes["dim"], node.inputs[0]
    assert isinstance(dim, int) and source is not None
    return dim % source.rank


def _ints(node: Node, name: str) -> Sequence[int]:
    value = node.attributes[name]
    found = value if isinstance(value, tuple) else (value,)
    return [item for item in found if isinstance(item, int)]


__all__ = ["VIEWS", "Access", "Index", "free_view", "is_regrouping", "is_view", "regrouped"]
