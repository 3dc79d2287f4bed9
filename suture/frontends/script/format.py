"""The canonical layout of a script (`suture fmt`): one spacing, one clause order, comments kept and aligned.

Formatting never changes what a script says: the formatted text parses to an equal tree, and formatting it again
changes nothing.
"""

from __future__ import annotations

from suture.frontends.script.ast import (
    Apply,
    Argument,
    Binary,
    Bound,
    Build,
    Close,
    Comment,
    Cost,
    Expression,
    GraphSource,
    Input,
    InputType,
    Let,
    Measure,
    Model,
    Negation,
    Number,
    Option,
    Quantity,
    Save,
    Script,
    Show,
    Statement,
    Text,
    TorchSource,
    Value,
    Where,
)
from suture.frontends.script.parser import parse

WIDEST_LINE = 120
_INDENT = "    "
_STRENGTH = {"+": 1, "-": 1, "*": 2, "/": 2}
_NEGATION = 3


def format_source(source: str, file: str = "<script>") -> str:
    """A script's text in the canonical layout.

    :raises ScriptError: SCRIPT_SYNTAX, if the text does not parse
    """
    return format_script(parse(source, file))


def format_script(script: Script) -> str:
    """A parsed script in the canonical layout, with the comments of the text it came from."""
    version = script.version.span
    spans = [(version.line, version.end_line, f"suture {script.version.text}")]
    spans += [(item.span.line, item.span.end_line, format_statement(item)) for item in script.statements]
    lines: list[_Line] = []
    previous_end = 0
    comments = list(script.comments)
    for first, last, text in spans:
        above = [item for item in comments if item.line < first]
        inside = [item for item in comments if first <= item.line < last]
        trailing = [item for item in comments if item.line == last]
        comments = [item for item in comments if item.line > last]
        previous_end = _add_comments(lines, above, previous_end)
        blank = first > previous_end + 1 and bool(lines)
        # A comment between the lines of one statement moves above it: the statement may not keep its line breaks.
        lines += [_Line(_tidy(item), "", blank and i == 0) for i, item in enumerate(inside)]
        lines.append(_Line(text, _tidy(trailing[0]) if trailing else "", blank and not inside))
        previous_end = last
    _add_comments(lines, comments, previous_end)
    return _join(lines)


def format_statement(statement: Statement) -> str:
    """One statement: on one line if that is at most `WIDEST_LINE` wide, else a clause a line."""
    opening, clauses = _parts(statement)
    line = " ".join([opening, *clauses])
    if len(line) <= WIDEST_LINE or not clauses:
        return line
    return "\n".join([opening, *(_INDENT + clause for clause in clauses)])


class _Line:
    """A statement or a comment of its own, before trailing comments are aligned."""

    def __init__(self, text: str, comment: str, blank_above: bool) -> None:
        self.text = text
        self.comment = comment
        self.blank_above = blank_above

    @property
    def width(self) -> int:
        return len(self.text.rsplit("\n", 1)[-1])


def _add_comments(lines: list[_Line], comments: list[Comment], previous_end: int) -> int:
    for item in comments:
        lines.append(_Line(_tidy(item), "", item.line > previous_end + 1 and bool(lines)))
        previous_end = item.line
    return previous_end


def _join(lines: list[_Line]) -> str:
    output: list[str] = []
    for index, line in enumerate(lines):
        if line.blank_above:
            output.append("")
        if not line.comment:
            output.append(line.text)
            continue
        column = max(other.width for other in _neighbours(lines, index))
        output.append(f"{line.text}{' ' * (column - line.width)}  {line.comment}")
    return "\n".join(output) + "\n"


def _neighbours(lines: list[_Line], index: int) -> list[_Line]:
    """The run of adjacent lines with trailing comments that this line belongs to: their comments share a column."""
    first = last = index
    while first > 0 and lines[first - 1].comment and not lines[first].blank_above:
        first -= 1
    while last + 1 < len(lines) and lines[last + 1].comment and not lines[last + 1].blank_above:
        last += 1
    return lines[first : last + 1]


def _tidy(comment: Comment) -> str:
    body = comment.text[1:]
    return f"# {body}" if body and body[0] not in " #!:" else comment.text


# -------------------------------------------------------------------------------- statements and their clauses


def _parts(statement: Statement) -> tuple[str, list[str]]:
    """How a statement opens, and its clauses in canonical order."""
    match statement:
        case Model(name, source):
            return _model(name.text, source)
        case Let(name, value):
            return f"let {name.text} = {value.text}", []
        case Apply(operation, target, where, options):
            clauses = [_option(item) for item in options]
            if where is not None:
                # `where` narrows the sites, so it stands right behind them.
                sites = next((i + 1 for i, item in enumerate(options) if item.name.text == "at"), 0)
                clauses.insert(sites, _where(where))
            return f"{operation.text} {target.text}", clauses
        case Close(left, right, bound, measure, probes):
            clauses = [f"within {bound.text}" + (f" {measure.text}" if measure else "")]
            return f"check {left.text} ~ {right.text}", clauses + ([f"on {_text(probes)}"] if probes else [])
        case Cost(left, comparison, right):
            return f"check {_expression(left)} {comparison} {_expression(right)}", []
        case Save(name, path):
            return f"save {name.text} to {_text(path)}", []
        case Show(name, view):
            return f"show {name.text}" + (f" {view.text}" if view else ""), []
    word = "build" if isinstance(statement, Build) else "export"
    return f"{word} {statement.name.text} to {_text(statement.path)}", [_option(item) for item in statement.options]


def _model(name: str, source: TorchSource | GraphSource) -> tuple[str, list[str]]:
    if isinstance(source, GraphSource):
        return f"model {name} = graph {_text(source.path)}", []
    clauses = []
    if source.arguments:
        clauses.append("args " + ", ".join(_argument(item) for item in source.arguments))
    if source.weights is not None:
        clauses.append(f"weights {_text(source.weights)}")
    if source.inputs:
        clauses.append("input " + ", ".join(_input(item) for item in source.inputs))
    return f"model {name} = torch {_text(source.callable)}", clauses


def _argument(argument: Argument) -> str:
    return (f"{argument.name.text}=" if argument.name else "") + _value(argument.value)


def _input(item: Input) -> str:
    if not isinstance(item.value, InputType):
        return f"{item.name.text if item.name else ''}={_value(item.value)}"
    kind = format_type(item.value)
    return f"{item.name.text}: {kind}" if item.name else kind


def format_type(kind: InputType) -> str:
    """`f32[batch=4, 3]`."""
    sizes = []
    for size in kind.sizes:
        if isinstance(size, Number):
            sizes.append(size.text)
        else:
            sizes.append(size.name.text + (f"={size.example.text}" if size.example else ""))
    return f"{kind.dtype.text}[{', '.join(sizes)}]"


def _option(option: Option) -> str:
    return f"{option.name.text} {', '.join(_value(item) for item in option.values)}"


def _where(where: Where) -> str:
    return "where " + " and ".join(
        format_condition(item.subject.text, item.comparison, item.values) for item in where.conditions
    )


def format_condition(subject: str, comparison: str, values: tuple[Value, ...]) -> str:
    """`op == "linear", "conv2d"`."""
    return f"{subject} {comparison} {', '.join(_value(item) for item in values)}"


def _value(value: Value) -> str:
    if isinstance(value, Number):
        return value.text
    if isinstance(value, Bound):
        return f"{value.comparison}{value.number.text}"
    return _text(value) if isinstance(value, Text) else value.value


def _text(text: Text) -> str:
    return '"' + text.value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _expression(expression: Expression, strength: int = 0) -> str:
    """An expression with the brackets that it needs and no others."""
    match expression:
        case Quantity(number):
            return number.text
        case Measure(name, count):
            return f"{name.text}.{count.text}"
        case Negation(operand):
            return f"-{_expression(operand, _NEGATION)}"
        case Binary(operator, left, right):
            own = _STRENGTH[operator]
            text = f"{_expression(left, own)} {operator} {_expression(right, own + 1)}"
            return f"({text})" if own < strength else text
