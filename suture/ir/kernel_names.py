"""The names in a kernel: each is bound where it is used, none is taken twice, and the printed languages have none of them for themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from suture.ir.errors import Code, SutureError
from suture.ir.kernel import (
    Buffer,
    Expression,
    Kernel,
    Let,
    Load,
    Loop,
    MultiplyAccumulate,
    Name,
    Statement,
    Threads,
    bodies_of,
    expressions_of,
    names_in,
    parts,
    walk,
)
from suture.ir.kernel_text import print_expression, print_statement

_RESERVED = frozenset({
    "alignas", "auto", "bool", "break", "case", "catch", "char", "class", "const", "constexpr", "continue", "default", "delete", "do",
    "double", "else", "enum", "extern", "false", "float", "for", "free", "goto", "if", "inline", "int", "long", "malloc", "namespace",
    "new", "operator", "private", "protected", "public", "register", "restrict", "return", "short", "signed", "sizeof", "static", "struct",
    "switch", "template", "this", "throw", "true", "try", "typedef", "typename", "union", "unsigned", "using", "virtual", "void",
    "volatile", "while",
})  # fmt: skip
"""Names that C++ and CUDA have taken; those that begin with `k_` are the prints' own."""


def refusal(kernel: Kernel, what: str, remedy: str) -> SutureError:
    """What a check says of a kernel that it does not let pass."""
    return SutureError(Code.KERNEL, what, where=f"kernel {kernel.name}", remedy=remedy)


def said(statement: Statement) -> str:
    """A statement as messages quote it."""
    return repr(print_statement(statement))


def check_names(kernel: Kernel) -> None:
    """Every name is bound where it is used, and nothing has the name of something else in scope."""
    buffers = [*kernel.arguments, *kernel.locals]
    taken: set[str] = set()
    bound = [
        each.name if isinstance(each, Let) else each.variable
        for each in walk(kernel.body)
        if isinstance(each, Let | Loop | Threads)
    ]
    for name in (kernel.name, *(buffer.name for buffer in buffers), *(each.name for each in (*kernel.sizes, *bound))):
        if name in _RESERVED or name.startswith("k_"):
            raise refusal(kernel, f"{name} means something in the printed code", "take another name")
    names = [each.name for each in (*kernel.sizes, *kernel.scalars)] + [each.name for each in buffers]
    for name in (*names, *(each.variable.name for each in kernel.grid)):
        if name in taken:
            raise refusal(kernel, f"{name} is declared twice", "take another name")
        taken.add(name)
    known = {item.name for item in buffers}
    outer = taken - known
    sizes = {each.name for each in kernel.sizes}
    for buffer in buffers:
        for size in buffer.shape:
            _require_bound(kernel, size, sizes, set(), f"the shape of {buffer.name}")
    for each in kernel.grid:
        _require_bound(kernel, each.count, sizes, set(), f"the grid's {each.variable.name}")
    declared = {item.name: item for item in buffers}
    _names_in_body(kernel, kernel.body, outer, declared)


def _names_in_body(kernel: Kernel, body: Sequence[Statement], names: set[str], buffers: dict[str, Buffer]) -> None:
    names = set(names)
    for statement in body:
        bound = _bound_in(kernel, statement, names | set(buffers))
        for hint in statement.towards if isinstance(statement, MultiplyAccumulate) else ():
            _require_bound(kernel, hint, names | bound, buffers, statement)
        for expression in expressions_of(statement):
            _require_bound(kernel, expression, names | bound, buffers, statement)
        for buffer in _buffers_of(statement):
            if buffers.get(buffer.name) != buffer:
                raise refusal(
                    kernel, f"{said(statement)} uses a buffer {buffer.name} that is not declared so", "declare it"
                )
        inner = set(names)
        if isinstance(statement, Let | Loop | Threads):
            name = statement.name if isinstance(statement, Let) else statement.variable
            if name.name in names or name.name in buffers:
                raise refusal(kernel, f"{said(statement)} hides another {name.name}", "take another name")
            (names if isinstance(statement, Let) else inner).add(name.name)
        for part in bodies_of(statement):
            _names_in_body(kernel, part, inner, buffers)


def _bound_in(kernel: Kernel, statement: Statement, taken: set[str]) -> set[str]:
    """The variables that the matrices of a product are written in; how far they run does not depend on them."""
    if not isinstance(statement, MultiplyAccumulate):
        return set()
    bound = {each.name for each in (statement.row, statement.column, statement.inner)}
    hidden = sorted(bound & taken)
    if hidden or len(bound) < 3:
        raise refusal(
            kernel,
            f"{said(statement)} hides another {' and '.join(hidden) or 'of its variables'}",
            "take another name",
        )
    for part, foreign in (
        (statement.left, {statement.column.name}), (statement.right, {statement.row.name}),
        *((each, bound) for each in (statement.rows, statement.columns, statement.depth)),
    ):  # fmt: skip
        if names_in(part) & foreign:
            raise refusal(
                kernel, f"{print_expression(part)} in {said(statement)} depends on {min(names_in(part) & foreign)}",
                "the left matrix is a function of row and inner variable, the right one of inner variable and column",
            )  # fmt: skip
    return bound


def _require_bound(
    kernel: Kernel,
    expression: Expression,
    names: set[str],
    buffers: set[str] | dict[str, Buffer],
    place: str | Statement,
) -> None:
    for part in parts(expression):
        known = not isinstance(part, Name) or part.name in names
        if known and not (isinstance(part, Load) and part.buffer.name not in buffers):
            continue
        where = place if isinstance(place, str) else said(place)
        if isinstance(part, Name):
            raise refusal(kernel, f"{part.name} is not known in {where}", "bind it first")
        assert isinstance(part, Load)
        raise refusal(kernel, f"{part.buffer.name} is not declared, in {where}", "declare it")


def _buffers_of(statement: Statement) -> Iterator[Buffer]:
    for name in ("buffer", "target", "source", "left", "right"):
        found = getattr(statement, name, None)
        if isinstance(found, Buffer):
            yield found
