"""The script language's syntax tree: frozen, comparable, every node with its place in the source.

Places take no part in equality, so that two scripts that say the same compare equal however they are laid out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

LANGUAGE_VERSION = 1


@dataclass(frozen=True, order=True)
class Span:
    """A stretch of source: lines and columns count from 1, the end is exclusive."""

    line: int
    column: int
    end_line: int
    end_column: int

    def to(self, other: Span) -> Span:
        """The stretch from this one's start to the other's end."""
        return Span(self.line, self.column, other.end_line, other.end_column)


@dataclass(frozen=True)
class Name:
    """An identifier: a model's name, a pass, an option, a symbol."""

    text: str
    span: Span = field(compare=False, repr=False)


# ---------------------------------------------------------------------------------------------------- values


@dataclass(frozen=True)
class Number:
    """`8`, `0.5`, `5e-2`, `1_000`, `2.1G`, `-1`; `text` is how it was written."""

    value: int | float
    text: str
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True)
class Text:
    """`"layer*.conv1"`: a quoted string."""

    value: str
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True)
class Word:
    """`l2`, `true`: a bare word; `true`, `false` and `none` are the constants of those names, any other is a text."""

    value: str
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True)
class Bound:
    """`>=3`: a comparison with a number."""

    comparison: str
    number: Number
    span: Span = field(compare=False, repr=False)


Value = Number | Text | Word | Bound


# ------------------------------------------------------------------------------------------------ statements


@dataclass(frozen=True)
class Argument:
    """One argument of a model's callable: `10` or `width=0.5`."""

    name: Name | None
    value: Value
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True)
class SizeSymbol:
    """A dimension that varies: `batch`, or `sequence=128` with the size to trace at."""

    name: Name
    example: Number | None
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True)
class InputType:
    """`f32[batch, 3, 224, 224]`."""

    dtype: Name
    sizes: tuple[Number | SizeSymbol, ...]
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True)
class Input:
    """One input of a model: a type, or a constant handed to the model's forward (`use_cache=false`)."""

    name: Name | None
    value: InputType | Value
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True)
class TorchSource:
    """`torch "package.module:callable" args ... weights "file" input ...`."""

    callable: Text
    arguments: tuple[Argument, ...]
    weights: Text | None
    inputs: tuple[Input, ...]
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True)
class GraphSource:
    """`graph "file.suture-graph"`: a graph that `save` wrote."""

    path: Text
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True)
class Model:
    """`model net = ...`: gives a name to a graph that comes from outside."""

    name: Name
    source: TorchSource | GraphSource
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True)
class Let:
    """`let before = net`: a second name for what a name holds now."""

    name: Name
    value: Name
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True)
class Option:
    """`keep 0.5`, `at "a", "b"`: an option's name and its values."""

    name: Name
    values: tuple[Value, ...]
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True)
class Condition:
    """`op == "linear", "conv2d"`: what a site must satisfy."""

    subject: Name
    comparison: str
    values: tuple[Value, ...]
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True)
class Where:
    """`where op == "linear" and axis == "ffn"`: all conditions hold."""

    conditions: tuple[Condition, ...]
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True)
class Apply:
    """`prune net at "layer*" keep 0.5`: a registered pass replaces what a name holds."""

    operation: Name
    target: Name
    where: Where | None
    options: tuple[Option, ...]
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True)
class Close:
    """`check a ~ b within 5e-2 relative on "probes.npz"`."""

    left: Name
    right: Name
    bound: Number
    measure: Name | None
    probes: Text | None
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True)
class Quantity:
    """A number in an expression."""

    number: Number
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True)
class Measure:
    """`net.macs`: one of a graph's counts."""

    name: Name
    count: Name
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True)
class Negation:
    """`-x`."""

    operand: Expression
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True)
class Binary:
    """`left + right` and its like."""

    operator: Literal["+", "-", "*", "/"]
    left: Expression
    right: Expression
    span: Span = field(compare=False, repr=False)


Expression = Quantity | Measure | Negation | Binary


@dataclass(frozen=True)
class Cost:
    """`check net.macs <= 0.6 * original.macs`."""

    left: Expression
    comparison: str
    right: Expression
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True)
class Export:
    """`export net to "net.onnx" opset 21`."""

    name: Name
    path: Text
    options: tuple[Option, ...]
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True)
class Build:
    """`build net to "out/" target cpp`: a folder of sources."""

    name: Name
    path: Text
    options: tuple[Option, ...]
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True)
class Save:
    """`save net to "net.suture-graph"`."""

    name: Name
    path: Text
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True)
class Show:
    """`show net axes`."""

    name: Name
    view: Name | None
    span: Span = field(compare=False, repr=False)


Statement = Model | Let | Apply | Close | Cost | Export | Build | Save | Show


@dataclass(frozen=True)
class Comment:
    """`# ...` as written, without trailing blanks; `alone` if nothing else stands on its line."""

    text: str
    line: int
    column: int
    alone: bool


@dataclass(frozen=True)
class Script:
    """A whole script. Comments stand beside the statements: only the formatter reads them."""

    version: Number
    statements: tuple[Statement, ...]
    file: str = field(compare=False)
    source: str = field(compare=False, repr=False)
    comments: tuple[Comment, ...] = field(compare=False, repr=False)

    def text(self, span: Span) -> str:
        """The source of a stretch as one line, comments and line breaks left out."""
        lines = self.source.split("\n")[span.line - 1 : span.end_line]
        comments = {comment.line: comment.column for comment in self.comments}
        lines = [line[: comments.get(span.line + i, len(line) + 1) - 1] for i, line in enumerate(lines)]
        if span.end_line == span.line:
            return lines[0][span.column - 1 : span.end_column - 1].strip()
        lines[0] = lines[0][span.column - 1 :]
        return " ".join(line.strip() for line in lines if line.strip())
