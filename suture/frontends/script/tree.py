"""Lark's parse tree -> the syntax tree of `ast.py`: one method a grammar rule, and what the grammar cannot say."""

# ruff: noqa: D102 (a method here builds the grammar rule of its name)

from __future__ import annotations

import re
from typing import Any, Literal, NoReturn

from lark import Token, Transformer, v_args

from suture.frontends.script.ast import (
    Apply,
    Argument,
    Binary,
    Bound,
    Build,
    Close,
    Condition,
    Cost,
    Export,
    Expression,
    GraphSource,
    Input,
    InputType,
    Let,
    Measure,
    Model,
    Name,
    Negation,
    Number,
    Option,
    Quantity,
    Save,
    Show,
    SizeSymbol,
    Span,
    Statement,
    Text,
    TorchSource,
    Value,
    Where,
    Word,
)
from suture.frontends.script.diagnostics import ScriptError
from suture.ir.errors import Code

_SUFFIXES = {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_MOST_DIGITS = 308
_OPERATORS: dict[str, Literal["+", "-", "*", "/"]] = {"+": "+", "-": "-", "*": "*", "/": "/"}


@v_args(inline=True)
class TreeBuilder(Transformer[Token, Any]):
    """Builds the statements of one source text."""

    def __init__(self, source: str, file: str) -> None:
        super().__init__()
        self.source = source
        self.file = file

    def _fail(self, what: str, span: Span, remedy: str) -> NoReturn:
        raise ScriptError(Code.SCRIPT_SYNTAX, what, file=self.file, source=self.source, span=span, remedy=remedy)

    # ------------------------------------------------------------------------------------------- tokens
    def NAME(self, token: Token) -> Name:
        return Name(str(token), _span(token))

    def STRING(self, token: Token) -> Text:
        return Text(re.sub(r"\\(.)", r"\1", str(token)[1:-1]), _span(token))

    def NUMBER(self, token: Token) -> Number:
        text, span = str(token), _span(token)
        digits, scale = (text[:-1], _SUFFIXES[text[-1]]) if text[-1] in _SUFFIXES else (text, 1)
        if len(digits) > _MOST_DIGITS:
            self._fail(f"the number has {len(digits)} digits", span, f"at most {_MOST_DIGITS} are read")
        value: int | float
        try:
            value = int(digits) * scale
        except ValueError:
            value = float(digits) * scale
            if value == float("inf"):
                self._fail(f"the number {text} is too large", span, "write one below 1e308")
            if scale > 1 and value == int(value):
                value = int(value)
        return Number(value, text, span)

    # ------------------------------------------------------------------------------------------- values
    def number(self, number: Number) -> Value:
        return number

    def negative(self, sign: Token, number: Number) -> Value:
        return Number(-number.value, "-" + number.text, _span(sign).to(number.span))

    def text(self, text: Text) -> Value:
        return text

    def word(self, name: Name) -> Value:
        return Word(name.text, name.span)

    def bound(self, comparison: Token, number: Number) -> Value:
        return Bound(str(comparison), number, _span(comparison).to(number.span))

    # ------------------------------------------------------------------------------------------- models
    def start(self, version: Number, *statements: Statement) -> list[Number | Statement]:
        return [version, *statements]

    def version(self, keyword: Token, number: Number) -> Number:
        return number

    def model(self, keyword: Any, name: Name, source: TorchSource | GraphSource) -> Model:
        return Model(name, source, _span(keyword).to(source.span))

    def torch_source(self, keyword: Token, callable_name: Text, *clauses: tuple[str, Span, Any]) -> TorchSource:
        found: dict[str, Any] = {}
        for title, span, content in clauses:
            if title in found:
                self._fail(f"'{title}' is given twice", span, f"a model has one '{title}'")
            found[title] = content
        end = clauses[-1][1] if clauses else callable_name.span
        span = _span(keyword).to(end)
        return TorchSource(callable_name, found.get("args", ()), found.get("weights"), found.get("input", ()), span)

    def graph_source(self, keyword: Token, path: Text) -> GraphSource:
        return GraphSource(path, _span(keyword).to(path.span))

    def args_clause(self, keyword: Token, *arguments: Argument) -> tuple[str, Span, Any]:
        self._no_duplicates(arguments)
        return "args", _span(keyword).to(arguments[-1].span), arguments

    def weights_clause(self, keyword: Token, path: Text) -> tuple[str, Span, Any]:
        return "weights", _span(keyword).to(path.span), path

    def input_clause(self, keyword: Token, *inputs: Input) -> tuple[str, Span, Any]:
        self._no_duplicates(inputs)
        return "input", _span(keyword).to(inputs[-1].span), inputs

    def _no_duplicates(self, items: tuple[Argument | Input, ...]) -> None:
        seen: set[str] = set()
        for item in items:
            if item.name is None:
                if seen:
                    self._fail("a positional one follows a named one", item.span, "give positional ones first")
                continue
            if item.name.text in seen:
                self._fail(f"'{item.name.text}' is given twice", item.name.span, "give it once")
            seen.add(item.name.text)

    def positional_argument(self, value: Value) -> Argument:
        return Argument(None, self._plain(value), value.span)

    def named_argument(self, name: Name, value: Value) -> Argument:
        return Argument(name, self._plain(value), name.span.to(value.span))

    def _plain(self, value: Value) -> Value:
        if isinstance(value, Bound):
            self._fail("a comparison is no argument", value.span, "write a number, a text or a word")
        return value

    def positional_input(self, kind: InputType) -> Input:
        return Input(None, kind, kind.span)

    def named_input(self, name: Name, kind: InputType) -> Input:
        return Input(name, kind, name.span.to(kind.span))

    def constant_input(self, name: Name, value: Value) -> Input:
        return Input(name, self._plain(value), name.span.to(value.span))

    def tensor_type(self, dtype: Name, *rest: Any) -> InputType:
        *sizes, bracket = rest
        return InputType(dtype, tuple(size for size in sizes if size is not None), dtype.span.to(_span(bracket)))

    def fixed_size(self, number: Number) -> Number:
        return self._whole(number)

    def symbolic_size(self, name: Name, example: Number | None) -> SizeSymbol:
        end = name.span if example is None else example.span
        return SizeSymbol(name, None if example is None else self._whole(example), name.span.to(end))

    def _whole(self, number: Number) -> Number:
        if not isinstance(number.value, int) or number.value < 1:
            self._fail(
                f"a size cannot be {number.text}", number.span, "a size is a positive integer or a name such as batch"
            )
        return number

    # --------------------------------------------------------------------------------------- statements
    def let(self, keyword: Token, name: Name, value: Name) -> Let:
        return Let(name, value, _span(keyword).to(value.span))

    def apply(self, operation: Name, target: Name, *clauses: Where | Option) -> Apply:
        wheres = [clause for clause in clauses if isinstance(clause, Where)]
        if len(wheres) > 1:
            self._fail("'where' is given twice", wheres[1].span, "join the conditions with 'and'")
        options = tuple(clause for clause in clauses if isinstance(clause, Option))
        end = clauses[-1].span if clauses else target.span
        return Apply(operation, target, wheres[0] if wheres else None, self._once(options), operation.span.to(end))

    def where(self, keyword: Token, *conditions: Any) -> Where:
        kept = tuple(item for item in conditions if isinstance(item, Condition))
        return Where(kept, _span(keyword).to(kept[-1].span))

    def condition(self, subject: Name, comparison: Token, *values: Value) -> Condition:
        return Condition(subject, str(comparison), values, subject.span.to(values[-1].span))

    def option(self, keyword: Name | Token, *values: Value) -> Option:
        name = self.NAME(keyword) if isinstance(keyword, Token) else keyword
        return Option(name, values, name.span.to(values[-1].span))

    def _once(self, options: tuple[Option, ...]) -> tuple[Option, ...]:
        seen: set[str] = set()
        for option in options:
            if option.name.text in seen:
                self._fail(
                    f"'{option.name.text}' is given twice", option.name.span, "several values are joined by commas"
                )
            seen.add(option.name.text)
        return options

    def close(
        self,
        keyword: Token,
        left: Name,
        right: Name,
        within: Token,
        bound: Number,
        measure: Name | None,
        on: Token | None,
        probes: Text | None,
    ) -> Close:
        end = next(item.span for item in (probes, measure, bound) if item is not None)
        return Close(left, right, bound, measure, probes, _span(keyword).to(end))

    def cost(self, keyword: Token, left: Expression, comparison: Token, right: Expression) -> Cost:
        return Cost(left, str(comparison), right, _span(keyword).to(right.span))

    def quantity(self, number: Number) -> Expression:
        return Quantity(number, number.span)

    def measure(self, name: Name, count: Name) -> Expression:
        return Measure(name, count, name.span.to(count.span))

    def negation(self, sign: Token, operand: Expression) -> Expression:
        return Negation(operand, _span(sign).to(operand.span))

    def binary(self, left: Expression, operator: Token, right: Expression) -> Expression:
        return Binary(_OPERATORS[str(operator)], left, right, left.span.to(right.span))

    def export(self, keyword: Token, name: Name, to: Token, path: Text, *options: Option) -> Export:
        end = options[-1].span if options else path.span
        return Export(name, path, self._once(options), _span(keyword).to(end))

    def build(self, keyword: Token, name: Name, to: Token, path: Text, *options: Option) -> Build:
        end = options[-1].span if options else path.span
        return Build(name, path, self._once(options), _span(keyword).to(end))

    def save(self, keyword: Token, name: Name, to: Token, path: Text) -> Save:
        return Save(name, path, _span(keyword).to(path.span))

    def show(self, keyword: Token, name: Name, view: Name | None) -> Show:
        return Show(name, view, _span(keyword).to((view or name).span))


def _span(token: Any) -> Span:
    return Span(token.line, token.column, token.end_line, token.end_column)
