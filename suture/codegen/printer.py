"""What the prints of a kernel share: the signature, local buffers, the statements of a lane."""

from __future__ import annotations

from collections.abc import Sequence

from suture.codegen.expressions import C_TYPES, ExpressionPrinter, combined
from suture.ir.kernel import (
    Branch,
    Buffer,
    CopyTile,
    Kernel,
    Let,
    Loop,
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
    walk,
)
from suture.ir.kernel_collectives import expand


class KernelPrinter(ExpressionPrinter):
    """Prints one kernel; targets say how regions, collectives and scatters look."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__()
        self.kernel = kernel
        self.lines: list[str] = []
        self.depth = 0

    def line(self, text: str) -> None:
        """Append a line."""
        self.lines.append("  " * self.depth + text if text else "")

    def block(self, head: str, print_inside: object) -> None:
        """A head, braces, and what the function prints between them."""
        assert callable(print_inside)
        self.line(f"{head} {{" if head else "{")
        self.depth += 1
        print_inside()
        self.depth -= 1
        self.line("}")

    def parameters(self, restrict: str) -> list[str]:
        """The function's parameters: sizes, scalars, buffers; what is only read is const."""
        written = {each.buffer.name for each in walk(self.kernel.body) if isinstance(each, Store | Update | Scatter)}
        found = [f"k_i64 {each.name}" for each in self.kernel.sizes]
        found += [f"{C_TYPES[each.dtype]} {each.name}" for each in self.kernel.scalars]
        for buffer in self.kernel.arguments:
            const = "" if buffer.name in written else "const "
            found.append(f"{const}{C_TYPES[buffer.dtype]}* {restrict} {buffer.name}")
        return found

    def decode_grid(self) -> None:
        """The block's coordinates from its number; the last dimension runs fastest."""
        rest = "k_block"
        for position, each in reversed(list(enumerate(self.kernel.grid))):
            count = self.show(each.count)
            self.line(f"const k_i64 {each.variable.name} = {rest if position == 0 else f'{rest} % ({count})'};")
            rest = f"({rest} / ({count}))"

    def blocks(self) -> str:
        """How many blocks there are."""
        return " * ".join(f"({self.show(each.count)})" for each in self.kernel.grid) or "1"

    # the statements of a block

    def between(self, body: Sequence[Statement]) -> None:
        """The statements between regions; what moves data is a region of plain statements."""
        for statement in body:
            match statement:
                case Threads():
                    self.region(statement)
                case CopyTile():
                    self.region(expand(statement))
                case MultiplyAccumulate():
                    self.multiply(statement)
                case Reduce():
                    self.reduce(statement)
                case Scan():
                    self.scan(statement)
                case Loop(variable, start, stop, inner):
                    head = self.loop_head(variable, self.show(start), self.show(stop))
                    self.block(head, lambda inner=inner: self.between(inner))
                case Branch(condition, inner, otherwise):
                    self.block(f"if ({self.show(condition)})", lambda inner=inner: self.between(inner))
                    if otherwise:
                        self.block("else", lambda otherwise=otherwise: self.between(otherwise))
                case _:
                    self.statement(statement)

    def region(self, region: Threads) -> None:
        """All lanes' turn at a body."""
        raise NotImplementedError

    def multiply(self, product: MultiplyAccumulate) -> None:
        """A product of matrices: what it means, lane by lane."""
        self.region(expand(product))

    def reduce(self, reduce: Reduce) -> None:
        """The lanes' numbers combined."""
        raise NotImplementedError

    def scan(self, scan: Scan) -> None:
        """Each lane's number combined with those before it."""
        raise NotImplementedError

    # the statements of a lane

    def body(self, body: Sequence[Statement]) -> None:
        """The statements of one lane, in order."""
        for statement in body:
            self.statement(statement)

    def statement(self, statement: Statement) -> None:
        """One statement of one lane."""
        match statement:
            case Store(buffer, index, value):
                self.line(f"{self.element(buffer, index)} = {self.show(value)};")
            case Update(buffer, index, operation, value):
                self.update(self.element(buffer, index), operation, self.show(value), buffer)
            case Scatter():
                self.scatter(statement)
            case Let(name, value):
                self.line(f"const {C_TYPES[name.dtype]} {name.name} = {self.show(value)};")
            case Loop(variable, start, stop, body):
                self.block(self.loop_head(variable, self.show(start), self.show(stop)), lambda: self.body(body))
            case Branch(condition, body, otherwise):
                self.block(f"if ({self.show(condition)})", lambda: self.body(body))
                if otherwise:
                    self.block("else", lambda: self.body(otherwise))
            case _:
                raise AssertionError(f"{statement} is no statement of a lane")

    def update(self, place: str, operation: str, value: str, buffer: Buffer) -> None:
        """`place` met with `value`."""
        if operation == "+":
            self.line(f"{place} += {value};")
        else:
            self.line(f"{place} = {combined(operation, place, value, buffer.dtype)};")

    def scatter(self, scatter: Scatter) -> None:
        """A scatter, in its lowering."""
        raise NotImplementedError

    @staticmethod
    def loop_head(variable: Name, start: str, stop: str) -> str:
        """The head of a loop."""
        name = variable.name
        return f"for (k_i64 {name} = {start}; {name} < {stop}; ++{name})"

    def locals(self, *scopes: Scope) -> list[Buffer]:
        """The block's buffers of some scopes."""
        return [buffer for buffer in self.kernel.locals if buffer.scope in scopes]
