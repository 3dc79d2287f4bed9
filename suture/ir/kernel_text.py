"""The text form of kernels: expressions read like Python, statements one a line, bodies by indentation. What prints parses back."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch

from suture.ir.errors import Code, SutureError
from suture.ir.kernel import (
    FUNCTIONS,
    INDEX,
    Apply,
    Bound,
    Branch,
    Buffer,
    CopyTile,
    Expression,
    Grid,
    Kernel,
    Let,
    Literal,
    Load,
    Loop,
    Lowering,
    MultiplyAccumulate,
    Name,
    Reduce,
    Scan,
    Scatter,
    Scope,
    Statement,
    Store,
    Threads,
    Update,
    apply,
    cast,
)
from suture.ir.types import DTYPE_NAMES, DTYPES

# How tightly an infix operator binds, as in Python.
_STRENGTH = {
    "or": 1, "and": 2, "<": 4, "<=": 4, "==": 4, "!=": 4, "+": 5, "-": 5, "*": 6, "/": 6, "//": 6, "%": 6,
}  # fmt: skip
_TERNARY, _ATOM = 0, 9


def print_kernel(kernel: Kernel) -> str:
    """The text of a kernel."""
    arguments = [f"{each.name}: size" for each in kernel.sizes]
    arguments += [f"{each.name}: {DTYPE_NAMES[each.dtype]}" for each in kernel.scalars]
    arguments += [_declaration(each) for each in kernel.arguments]
    lines = [f"kernel {kernel.name}({', '.join(arguments)})"]
    lines += [f"  grid {each.variable.name} < {print_expression(each.count)}" for each in kernel.grid]
    lines += [f"  {each.scope.value} {_declaration(each)}" for each in kernel.locals]
    lines += _body(kernel.body, 1)
    return "\n".join(lines) + "\n"


def print_expression(expression: Expression) -> str:
    """The text of an expression."""
    return _infix(expression)[0]


def print_statement(statement: Statement) -> str:
    """The first line of a statement."""
    return _statement(statement, 0)[0]


def _declaration(buffer: Buffer) -> str:
    shape = ", ".join(print_expression(size) for size in buffer.shape)
    text = f"{buffer.name}: {DTYPE_NAMES[buffer.dtype]}[{shape}]"
    if buffer.bound is not None:
        text += f" below {print_expression(buffer.bound.below)}" + (" rising" if buffer.bound.rising else "")
        text += " distinct" if buffer.bound.distinct else ""
    return text


def _infix(expression: Expression) -> tuple[str, int]:
    """An expression's text and how tightly it holds together."""
    match expression:
        case Literal(value, dtype):
            return _literal(value, dtype), _ATOM
        case Name(name):
            return name, _ATOM
        case Load(buffer, index):
            inner = ", ".join(print_expression(part) for part in index)
            return (f"{buffer.name}[{inner}]" if index else buffer.name), _ATOM
        case Apply("cast", (value,), dtype):
            return f"cast({DTYPE_NAMES[dtype]}, {print_expression(value)})", _ATOM
        case Apply("select", (condition, then, otherwise)):
            texts = [_held(part, _TERNARY + 1) for part in (then, condition)]
            return f"{texts[0]} if {texts[1]} else {_held(otherwise, _TERNARY)}", _TERNARY
        case Apply(function, (left, right)) if function in _STRENGTH:
            strength = _STRENGTH[function]
            tighter = strength + 1
            # comparisons do not chain, and `and`, `or` of the same kind would lose their nesting
            first = tighter if function in ("<", "<=", "==", "!=", "and", "or") else strength
            return f"{_held(left, first)} {function} {_held(right, tighter)}", strength
        case Apply(function, operands):
            return f"{_CALLED.get(function, function)}({', '.join(print_expression(part) for part in operands)})", _ATOM


_CALLED = {"not": "invert", "neg": "neg"}
_FUNCTION = {called: function for function, called in _CALLED.items()}


def _held(expression: Expression, strength: int) -> str:
    text, own = _infix(expression)
    return text if own >= strength else f"({text})"


def _literal(value: int | float | bool, dtype: torch.dtype) -> str:
    if dtype == torch.bool:
        return str(bool(value))
    if dtype.is_floating_point:
        return f"{DTYPE_NAMES[dtype]}({float(value)!r})"
    return str(value) if dtype == INDEX else f"{DTYPE_NAMES[dtype]}({value})"


def _body(body: tuple[Statement, ...], depth: int) -> list[str]:
    lines = []
    for statement in body:
        lines += ["  " * depth + line if k == 0 else line for k, line in enumerate(_statement(statement, depth))]
    return lines


def _statement(statement: Statement, depth: int) -> list[str]:
    """A statement's own line, then its bodies' with their indentation."""
    say = print_expression
    match statement:
        case Store(buffer, index, value):
            return [f"{say(Load(buffer, index))} = {say(value)}"]
        case Update(buffer, index, operation, value):
            return [f"{say(Load(buffer, index))} {operation}= {say(value)}"]
        case Scatter(buffer, index, operation, value, lowering):
            return [f"scatter {say(Load(buffer, index))} {operation}= {say(value)} by {lowering.value}"]
        case Let(name, value):
            return [f"let {name.name} = {say(value)}"]
        case Loop(variable, start, stop, body):
            return [f"for {variable.name} in {say(start)} .. {say(stop)}:", *_body(body, depth + 1)]
        case Branch(condition, body, otherwise):
            other = ["  " * depth + "else:", *_body(otherwise, depth + 1)] if otherwise else []
            return [f"if {say(condition)}:", *_body(body, depth + 1), *other]
        case Threads(variable, count, body):
            return [f"each {variable.name} < {count}:", *_body(body, depth + 1)]
        case Reduce(target, operation, source, count, width):
            groups = f" in groups of {width}" if width else ""
            return [f"{target.name} = reduce {operation} {source.name} over {count}{groups}"]
        case Scan(target, operation, source, count):
            return [f"{target.name} = scan {operation} {source.name} over {count}"]
        case CopyTile(target, source, origin, count, fill):
            return [f"{target.name} = copy {say(Load(source, origin))} over {count} fill {fill!r}"]
        case MultiplyAccumulate():
            ends = (
                (statement.row, statement.rows),
                (statement.column, statement.columns),
                (statement.inner, statement.depth),
            )
            over = ", ".join(f"{variable.name} < {say(stop)}" for variable, stop in ends)
            product = f"{_held(statement.left, _ATOM)} @ {_held(statement.right, _ATOM)} for {over}"
            sign = "+=" if statement.adds else "="
            towards = "".join(f" towards {say(each)}" for each in statement.towards)
            return [
                f"{statement.target.name} {sign} {product} over {statement.count} across {statement.across}{towards}"
            ]


# parsing


def parse_kernel(text: str) -> Kernel:
    """Read a kernel back.

    :raises SutureError: TEXT, with the line
    """
    lines = [
        line for line in enumerate(text.splitlines(), 1) if line[1].strip() and not line[1].lstrip().startswith("#")
    ]
    if not lines:
        raise SutureError(Code.TEXT, "no kernel", remedy="a kernel starts with kernel name(...)")
    return _Parser(lines).kernel()


_HEAD = re.compile(r"kernel (\w+)\((.*)\)$")
_ARGUMENT = re.compile(r"(\w+): (\w+)(?:\[(.*)\])?(?: below (.*?))?( rising)?( distinct)?$")
_ACCESS = re.compile(r"(\w+)(?:\[(.*)\])?$")


@dataclass
class _Parser:
    """Lines with their numbers; what is named so far."""

    lines: list[tuple[int, str]]
    position: int = 0
    buffers: dict[str, Buffer] = field(default_factory=dict)
    names: dict[str, Name] = field(default_factory=dict)

    def kernel(self) -> Kernel:
        match = _HEAD.match(self._take(0))
        if match is None:
            raise self.error("kernel name(arguments) was expected")
        sizes: list[Name] = []
        scalars: list[Name] = []
        arguments: list[Buffer] = []
        for argument in _split(match[2]):
            found = _ARGUMENT.match(argument)
            if found is None:
                raise self.error(f"{argument!r} is no argument")
            if found[3] is None:
                name = Name(found[1], INDEX if found[2] == "size" else self._dtype(found[2]))
                (sizes if found[2] == "size" else scalars).append(name)
                self.names[name.name] = name
            else:
                arguments.append(self._declare(argument, Scope.GLOBAL))
        grid: list[Grid] = []
        locals_: list[Buffer] = []
        while (line := self._peek(1)) is not None and (parts := line.split(" ", 1))[0] in ("grid", *Scope):
            self._take(1)
            if parts[0] == "grid":
                variable, _, count = parts[1].partition(" < ")
                grid.append(Grid(self._name(variable), self.expression(count)))
            else:
                locals_.append(self._declare(parts[1], Scope(parts[0])))
        body = self.body(1)
        if self.position < len(self.lines):
            raise self.error("this line stands too far in or out")
        return Kernel(match[1], tuple(sizes), tuple(scalars), tuple(arguments), tuple(locals_), tuple(grid), body)

    def body(self, depth: int) -> tuple[Statement, ...]:
        known = dict(self.names)
        statements: list[Statement] = []
        while (line := self._peek(depth)) is not None and line != "else:":
            self.position += 1
            statements.append(self.statement(line, depth))
        self.names = known
        return tuple(statements)

    def statement(self, line: str, depth: int) -> Statement:
        word, _, rest = line.partition(" ")
        if line.endswith(":"):
            return self._compound(word, rest[:-1], depth)
        if word == "let":
            name, _, value = rest.partition(" = ")
            made = self.expression(value)
            return Let(self._name(name, made.dtype), made)
        if word == "scatter":
            update, _, how = rest.rpartition(" by ")
            place = self._update(update)
            return Scatter(*place, Lowering(how))
        if match := re.match(r"(\w+) = reduce (\S+) (\w+) over (\d+)(?: in groups of (\d+))?$", line):
            target, source = self._buffer(match[1]), self._buffer(match[3])
            return Reduce(target, match[2], source, int(match[4]), int(match[5] or 0))
        if match := re.match(r"(\w+) = scan (\S+) (\w+) over (\d+)$", line):
            return Scan(self._buffer(match[1]), match[2], self._buffer(match[3]), int(match[4]))
        if match := re.match(r"(\w+) = copy (.*) over (\d+) fill (\S+)$", line):
            source, origin = self._place(match[2])
            return CopyTile(self._buffer(match[1]), source, origin, int(match[3]), float(match[4]))
        if match := re.match(r"(\w+) (\+?=) (.*) @ (.*) for (.*) over (\d+) across (\d+)(?: towards (.*))?$", line):
            return self._product(match)
        if re.match(r"\w+(\[[^=]*\])? (\+|max|min)= ", line):
            return Update(*self._update(line))
        left_side, equals, value = line.partition(" = ")
        if not equals:
            raise self.error(f"{line!r} is no statement")
        return Store(*self._place(left_side), self.expression(value))

    def _compound(self, word: str, rest: str, depth: int) -> Statement:
        if word == "if":
            condition = self.expression(rest)
            body = self.body(depth + 1)
            otherwise: tuple[Statement, ...] = ()
            if self._peek(depth) == "else:":
                self.position += 1
                otherwise = self.body(depth + 1)
            return Branch(condition, body, otherwise)
        if word == "for" and (match := re.match(r"(\w+) in (.*) \.\. (.*)$", rest)):
            start, stop = self.expression(match[2]), self.expression(match[3])
            return self._scoped(match[1], lambda name: Loop(name, start, stop, self.body(depth + 1)))
        if word == "each" and (match := re.match(r"(\w+) < (\d+)$", rest)):
            count = int(match[2])
            return self._scoped(match[1], lambda name: Threads(name, count, self.body(depth + 1)))
        raise self.error(f"{word!r} starts no statement with a body")

    def _product(self, match: re.Match[str]) -> MultiplyAccumulate:
        ends = [each.partition(" < ") for each in _split(match[5])]
        if len(ends) != 3:
            raise self.error(
                "rows, columns and the length of the sums were expected: for i < rows, j < columns, k < depth"
            )
        known = dict(self.names)
        rows, columns, depth = (self.expression(stop) for _, _, stop in ends)
        row, column, inner = (self._name(name) for name, _, _ in ends)
        left, right = self.expression(match[3]), self.expression(match[4])
        towards = tuple(Load(*self._place(each)) for each in (match[8] or "").split(" towards ") if each)
        self.names = known
        sizes = (int(match[6]), int(match[7]))
        return MultiplyAccumulate(
            self._buffer(match[1]),
            left,
            right,
            row,
            column,
            inner,
            rows,
            columns,
            depth,
            *sizes,
            match[2] == "+=",
            towards,
        )

    def _scoped(self, name: str, make: Callable[[Name], Statement]) -> Statement:
        known = dict(self.names)
        made = make(self._name(name))
        self.names = known
        return made

    def _update(self, text: str) -> tuple[Buffer, tuple[Expression, ...], str, Expression]:
        match = re.match(r"(.*?) (\+|max|min)= (.*)$", text)
        if match is None:
            raise self.error(f"{text!r} is no update")
        return (*self._place(match[1]), match[2], self.expression(match[3]))

    def _place(self, text: str) -> tuple[Buffer, tuple[Expression, ...]]:
        match = _ACCESS.match(text)
        if match is None:
            raise self.error(f"{text!r} is no element of a buffer")
        return self._buffer(match[1]), tuple(self.expression(part) for part in _split(match[2] or ""))

    def _declare(self, text: str, scope: Scope) -> Buffer:
        match = _ARGUMENT.match(text)
        if match is None or match[3] is None:
            raise self.error(f"{text!r} declares no buffer")
        bound = (
            None if match[4] is None else Bound(self.expression(match[4]), match[5] is not None, match[6] is not None)
        )
        shape = tuple(self.expression(part) for part in _split(match[3]))
        self.buffers[match[1]] = Buffer(match[1], self._dtype(match[2]), shape, scope, bound)
        return self.buffers[match[1]]

    def _buffer(self, name: str) -> Buffer:
        if name not in self.buffers:
            raise self.error(f"there is no buffer {name!r}")
        return self.buffers[name]

    def _name(self, name: str, dtype: torch.dtype = INDEX) -> Name:
        self.names[name] = Name(name, dtype)
        return self.names[name]

    def _dtype(self, name: str) -> torch.dtype:
        if name not in DTYPES:
            raise self.error(f"{name!r} is no element type")
        return DTYPES[name]

    def _peek(self, depth: int) -> str | None:
        if self.position >= len(self.lines):
            return None
        line = self.lines[self.position][1]
        return line.strip() if len(line) - len(line.lstrip()) == 2 * depth else None

    def _take(self, depth: int) -> str:
        line = self._peek(depth)
        if line is None:
            raise self.error("this line stands too far in or out")
        self.position += 1
        return line

    def error(self, what: str) -> SutureError:
        """An error at the line read last."""
        number = self.lines[min(max(self.position - 1, 0), len(self.lines) - 1)][0]
        return SutureError(
            Code.TEXT, what, where=f"line {number} of the kernel", remedy="see docs/kernels.md for the text form"
        )

    def expression(self, text: str) -> Expression:
        """Read an expression."""
        try:
            tree = ast.parse(text.strip(), mode="eval").body
        except SyntaxError:
            raise self.error(f"{text!r} is no expression") from None
        return self._build(tree)

    def _build(self, tree: ast.expr) -> Expression:
        match tree:
            case ast.Constant(value=bool() as value):
                return Literal(value, torch.bool)
            case ast.Constant(value=int() as value):
                return Literal(value)
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() as value)):
                return Literal(-value)
            case ast.Name(id=name):
                return self._named(name)
            case ast.Subscript(value=ast.Name(id=name), slice=inner):
                items = inner.elts if isinstance(inner, ast.Tuple) else [inner]
                return Load(self._buffer(name), tuple(self._build(item) for item in items))
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
                return apply(_BINARY[type(op)], self._build(left), self._build(right))
            case ast.BoolOp(op=op, values=[left, right]):
                return apply("and" if isinstance(op, ast.And) else "or", self._build(left), self._build(right))
            case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _BINARY:
                return apply(_BINARY[type(op)], self._build(left), self._build(right))
            case ast.IfExp(test=test, body=then, orelse=otherwise):
                return apply("select", self._build(test), self._build(then), self._build(otherwise))
            case ast.Call(func=ast.Name(id="cast"), args=[ast.Name(id=kind), value]):
                return cast(self._build(value), self._dtype(kind))
            case ast.Call(func=ast.Name(id=name), args=[value]) if name in DTYPES:
                return Literal(self._number(value, DTYPES[name]), DTYPES[name])
            case ast.Call(func=ast.Name(id=name), args=operands) if _FUNCTION.get(name, name) in FUNCTIONS:
                return apply(_FUNCTION.get(name, name), *(self._build(item) for item in operands))
        raise self.error(f"{ast.unparse(tree)!r} is no expression of kernels")

    def _named(self, name: str) -> Expression:
        if name in self.names:
            return self.names[name]
        if name in self.buffers:
            return Load(self.buffers[name], ())
        raise self.error(f"there is no {name!r} here")

    def _number(self, tree: ast.expr, dtype: torch.dtype) -> int | float:
        text = ast.unparse(tree).replace(" ", "")
        try:
            return float(text) if dtype.is_floating_point else int(text)
        except ValueError:
            raise self.error(f"{text!r} is no number") from None


_BINARY: dict[type[ast.AST], str] = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.FloorDiv: "//", ast.Mod: "%",
    ast.Lt: "<", ast.LtE: "<=", ast.Eq: "==", ast.NotEq: "!=",
}  # fmt: skip


def _split(text: str) -> list[str]:
    """The parts between commas that stand in no brackets."""
    return list(_parts(text)) if text.strip() else []


def _parts(text: str) -> Iterator[str]:
    depth, start = 0, 0
    for position, sign in enumerate(text):
        depth += (sign in "([") - (sign in ")]")
        if sign == "," and depth == 0:
            yield text[start:position].strip()
            start = position + 1
    yield text[start:].strip()
