"""A pass statement against the pass's signature: which options it has, of which types, and what its words stand for."""

from __future__ import annotations

import collections.abc
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from suture.frontends.script.ast import Apply, Condition, Name, Option, Text, Value
from suture.frontends.script.diagnostics import located
from suture.frontends.script.imports import import_callable
from suture.frontends.script.scope import ORIGINAL, Scope
from suture.frontends.script.steps import Step, plain
from suture.frontends.script.syntax_errors import KEYWORDS
from suture.ir.errors import Code, SutureError, nearest
from suture.ir.graph import Graph
from suture.passes.options import Option as PassOption
from suture.passes.options import describe
from suture.passes.registry import Pass, passes

COMMON = {"within": float, "on": str, "check": bool}
"""Options of every pass: the bound for an approximation, a file of probes, whether to check the contract."""

_CONDITIONS = {
    ("op", "=="): "operator",
    ("operator", "=="): "operator",
    ("kind", "=="): "kind",
    ("path", "=="): "at",
    ("path", "!="): "exclude",
}
"""What `where` may ask of a site -> the option that answers it."""


def resolve_apply(scope: Scope, statement: Apply, text: str) -> Step:
    """A pass statement with its options converted to their types.

    :raises ScriptError: PASS, SCRIPT_NAME, SCRIPT_OPTION, FILE or PATH
    """
    known = passes()
    operation = known.get(statement.operation.text)
    if operation is None:
        remedy = nearest(statement.operation.text, [*known, *KEYWORDS], what="statement")
        scope.fail(Code.PASS, f"there is no pass {statement.operation.text!r}", statement.operation.span, remedy)
    scope.known(statement.target)
    if statement.target.text == ORIGINAL:
        scope.fail(Code.SCRIPT_NAME, "'original' cannot change", statement.target.span, "operate on a model's own name")
    declared = {option.name: option for option in operation.options}
    options: dict[str, Any] = {}
    graphs: dict[str, tuple[str, ...]] = {}
    arrays: dict[str, Path] = {}
    probes = None
    for option in _written_options(scope, statement, declared):
        name = option.name.text
        if name == "on":
            probes = scope.existing(scope.single_text(option), "probes")
        elif name in COMMON and name not in declared:
            options[name] = _common(scope, option)
        elif _admits(declared[name].type, Graph):
            graphs[name] = _graph_option(scope, option, several=_admits(declared[name].type, tuple))
        elif _admits(declared[name].type, collections.abc.Mapping) and isinstance(option.values[0], Text):
            arrays[name] = scope.existing(scope.single_text(option), name)
        else:
            options[name] = _convert(scope, declared[name], option, operation)
    for name, entry in declared.items():
        if entry.required and name not in {**options, **graphs, **arrays}:
            what = f"the pass {operation.name} needs the option {name!r}"
            scope.fail(Code.SCRIPT_OPTION, what, statement.operation.span, f"it takes {describe(entry.type)}")
    spelled = {name: str(plain(_value(statement, name))) for name, value in options.items() if callable(value)}
    spelled |= {name: ", ".join(words) for name, words in graphs.items()} | {
        name: path.name for name, path in arrays.items()
    }
    return Step(statement, text, operation, options, graphs, arrays, spelled, probes=probes)


def _value(statement: Apply, name: str) -> Value:
    return next(option.values[0] for option in statement.options if option.name.text == name)


def _written_options(scope: Scope, statement: Apply, declared: Mapping[str, PassOption]) -> Iterable[Option]:
    """The options as written, the conditions of `where` among them."""
    options = [*statement.options]
    for condition in statement.where.conditions if statement.where else ():
        options.append(_condition_option(scope, condition, statement.operation, declared))
    seen: set[str] = set()
    for option in options:
        name = option.name.text
        if name not in declared and name not in COMMON:
            what = f"the pass {statement.operation.text} has no option {name!r}"
            scope.fail(Code.SCRIPT_OPTION, what, option.name.span, nearest(name, [*declared, *COMMON], what="option"))
        if name in seen:
            what = f"the option {name!r} is given twice"
            scope.fail(Code.SCRIPT_OPTION, what, option.span, "several values are joined by commas")
        seen.add(name)
    return options


def _condition_option(
    scope: Scope, condition: Condition, operation: Name, declared: Mapping[str, PassOption]
) -> Option:
    """The option that a condition on sites stands for: `op == "linear"` is `operator "linear"`."""
    subject, sign = condition.subject.text, condition.comparison
    name = _CONDITIONS.get((subject, sign)) or (subject if sign == "==" else "")
    if name not in declared:
        known = [f"{key} {sign}" for (key, sign), option in _CONDITIONS.items() if option in declared]
        what = f"the pass {operation.text} selects no sites by '{subject} {sign}'"
        remedy = f"known conditions: {', '.join(known)}" if known else "it selects no sites"
        scope.fail(Code.SCRIPT_OPTION, what, condition.span, remedy)
    return Option(Name(name, condition.subject.span), condition.values, condition.span)


def _convert(scope: Scope, entry: PassOption, option: Option, operation: Pass) -> Any:
    values = [plain(value) for value in option.values]
    if _admits(entry.type, Path):
        values = [scope.existing(v, entry.name) if isinstance(v, Text) else plain(v) for v in option.values]
    elif _admits(entry.type, collections.abc.Callable) and isinstance(option.values[0], Text) and ":" in values[0]:
        try:
            values[0] = import_callable(values[0], scope.folder)
        except SutureError as error:
            raise located(error, scope.script, option.values[0].span) from None
    try:
        return entry.convert(values[0] if len(values) == 1 else tuple(values), f"the pass {operation.name}")
    except SutureError as error:
        span = option.values[0].span.to(option.values[-1].span)
        scope.fail(Code.SCRIPT_OPTION, error.what, span, error.remedy)


def _graph_option(scope: Scope, option: Option, *, several: bool) -> tuple[str, ...]:
    words = [plain(value) for value in option.values]
    if (len(words) > 1 and not several) or not all(isinstance(word, str) for word in words):
        what = f"option {option.name.text!r} takes {'models' if several else 'a model'}"
        scope.fail(Code.SCRIPT_OPTION, what, option.span, "write a model's name")
    for word, value in zip(words, option.values, strict=True):
        scope.known(Name(word, value.span))
    return tuple(words)


def _common(scope: Scope, option: Option) -> Any:
    name, kind = option.name.text, COMMON[option.name.text]
    value = plain(option.values[0])
    fits = isinstance(value, bool) if kind is bool else isinstance(value, int | float) and not isinstance(value, bool)
    if len(option.values) != 1 or not fits:
        scope.fail(Code.SCRIPT_OPTION, f"option {name!r} cannot be this", option.span, f"it takes {describe(kind)}")
    return value


def _admits(kind: Any, wanted: Any) -> bool:
    """Whether an option's type is, or is a union with, the wanted one."""
    if kind is wanted or typing.get_origin(kind) is wanted:
        return True
    return any(_admits(item, wanted) for item in typing.get_args(kind))
