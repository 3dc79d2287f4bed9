"""Names, passes, options and paths of a script, checked before anything is built: script -> steps.

What can be known from the text alone is refused here: unbound names, unknown passes and options, values of the wrong type, files that
are missing, paths that leave the script's folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from suture.frontends.script.ast import (
    Apply,
    Binary,
    Build,
    Close,
    Cost,
    Export,
    Expression,
    GraphSource,
    InputType,
    Let,
    Measure,
    Model,
    Negation,
    Save,
    Script,
    Statement,
    TorchSource,
)
from suture.frontends.script.diagnostics import script_error
from suture.frontends.script.pass_options import resolve_apply
from suture.frontends.script.scope import ORIGINAL, Scope
from suture.frontends.script.steps import Step, plain
from suture.ir.errors import Code, SutureError, nearest
from suture.ir.types import DTYPES
from suture.passes.options import Option as PassOption

MEASURES = {"params": "parameters", "macs": "macs", "bytes": "bytes", "nodes": "nodes"}
"""What an expression may ask of a graph -> the field of its statistics."""

CLOSENESS = ("absolute", "relative", "cosine")
VIEWS = ("stats", "axes", "regions", "text")
GRAPH_SUFFIX = ".suture-graph"


def resolve(script: Script, exporters: Mapping[str, Mapping[str, Any]], builder: Mapping[str, Any]) -> tuple[Step, ...]:
    """Check every statement of a script against the ones before it.

    :param exporters: file suffix -> options that its exporter takes, with their types
    :param builder: options that a build takes, with their types
    :raises ScriptError: at the first mistake
    """
    return _Resolver(script, exporters, builder).run()


class _Resolver:
    def __init__(self, script: Script, exporters: Mapping[str, Mapping[str, Any]], builder: Mapping[str, Any]) -> None:
        self.script = script
        self.scope = Scope(script)
        self.exporters = exporters
        self.builder = builder

    def run(self) -> tuple[Step, ...]:
        if not self.script.statements:
            version = self.script.version.span
            raise script_error(
                Code.SCRIPT_SYNTAX, "the script does nothing", self.script, version, "begin with a model"
            )
        return tuple(self.step(statement) for statement in self.script.statements)

    def step(self, statement: Statement) -> Step:
        text = self.script.text(statement.span)
        match statement:
            case Model(name, source):
                self.scope.bind(name)
                return self.model(statement, source, text)
            case Let(name, value):
                self.scope.known(value)
                self.scope.bind(name)
                return Step(statement, text)
            case Apply():
                return resolve_apply(self.scope, statement, text)
            case Close():
                return self.close(statement, text)
            case Cost(left, _, right):
                self.cost(statement, left, right)
                return Step(statement, text)
            case Export():
                return self.export(statement, text)
            case Build(name, path):
                self.scope.known(name)
                options = self.options(statement, self.builder, "build")
                return Step(statement, text, options=options, path=self.scope.target_folder(path))
            case Save(name, path):
                self.scope.known(name)
                if Path(path.value).suffix != GRAPH_SUFFIX:
                    self.scope.fail(
                        Code.SCRIPT_OPTION,
                        f"{path.value!r} is no name for a saved graph",
                        path.span,
                        f"it ends in {GRAPH_SUFFIX}",
                    )
                return Step(statement, text, path=self.scope.target(path))
        self.scope.known(statement.name)
        if statement.view is not None:
            self.scope.one_of(statement.view, VIEWS, "view")
        return Step(statement, text)

    # ------------------------------------------------------------------------------------------------ statements
    def model(self, statement: Model, source: TorchSource | GraphSource, text: str) -> Step:
        if isinstance(source, GraphSource):
            return Step(statement, text, path=self.scope.existing(source.path, "graph"))
        module, _, attribute = source.callable.value.partition(":")
        if not (
            module and attribute and all(part.isidentifier() for part in [*module.split("."), *attribute.split(".")])
        ):
            what = f"{source.callable.value!r} names no callable"
            self.scope.fail(Code.SCRIPT_MODEL, what, source.callable.span, 'write "package.module:callable"')
        if not source.inputs:
            remedy = "add for example: input f32[batch, 3, 224, 224]"
            self.scope.fail(Code.SCRIPT_MODEL, "the model has no input to be traced with", source.span, remedy)
        for item in source.inputs:
            if isinstance(item.value, InputType) and item.value.dtype.text not in DTYPES:
                remedy = nearest(item.value.dtype.text, DTYPES, what="type")
                self.scope.fail(
                    Code.SCRIPT_MODEL, f"there is no type {item.value.dtype.text!r}", item.value.dtype.span, remedy
                )
        return Step(statement, text, path=self.scope.existing(source.weights, "weights") if source.weights else None)

    def close(self, statement: Close, text: str) -> Step:
        for name in (statement.left, statement.right):
            self.scope.known(name)
        if statement.left.text == statement.right.text:
            what = f"{statement.left.text} is always equal to itself"
            self.scope.fail(Code.SCRIPT_NAME, what, statement.span, "compare two names, or one with original")
        if statement.measure is not None:
            self.scope.one_of(statement.measure, CLOSENESS, "measure of closeness")
        return Step(
            statement, text, probes=self.scope.existing(statement.probes, "probes") if statement.probes else None
        )

    def cost(self, statement: Cost, left: Expression, right: Expression) -> None:
        measures = [*measures_in(left), *measures_in(right)]
        if not measures:
            self.scope.fail(
                Code.SCRIPT_NAME, "the check asks nothing of any model", statement.span, "write for example net.macs"
            )
        for measure in measures:
            self.scope.known(measure.name)
            self.scope.one_of(measure.count, MEASURES, "count")
        named = {measure.name.text for measure in measures} - {ORIGINAL}
        if len(named) != 1 and any(measure.name.text == ORIGINAL for measure in measures):
            what = "'original' could be that of several models" if named else "'original' of which model?"
            remedy = "name one other model in the check, or keep the original with: let before = net"
            self.scope.fail(Code.SCRIPT_NAME, what, statement.span, remedy)

    def export(self, statement: Export, text: str) -> Step:
        self.scope.known(statement.name)
        suffix = Path(statement.path.value).suffix
        if suffix not in self.exporters:
            what = f"nothing exports to {statement.path.value!r}"
            known = ", ".join(sorted(self.exporters))
            self.scope.fail(
                Code.SCRIPT_OPTION, what, statement.path.span, f"known endings: {known}; 'save' writes {GRAPH_SUFFIX}"
            )
        options = self.options(statement, self.exporters[suffix], "export")
        return Step(statement, text, options=options, path=self.scope.target(statement.path))

    def options(self, statement: Export | Build, declared: Mapping[str, Any], word: str) -> dict[str, Any]:
        """The options of a statement that writes, converted to their types."""
        options = {}
        for option in statement.options:
            name = option.name.text
            if name not in declared:
                self.scope.fail(
                    Code.SCRIPT_OPTION,
                    f"{word} has no option {name!r}",
                    option.name.span,
                    nearest(name, declared, what="option"),
                )
            entry = PassOption(name, declared[name], None, False, "")
            values = [plain(value) for value in option.values]
            try:
                options[name] = entry.convert(values[0] if len(values) == 1 else tuple(values), word)
            except SutureError as error:
                self.scope.fail(Code.SCRIPT_OPTION, error.what, option.values[0].span, error.remedy)
        return options


def measures_in(expression: Expression) -> tuple[Measure, ...]:
    """Every count that an expression asks for, from left to right."""
    match expression:
        case Measure():
            return (expression,)
        case Negation(operand):
            return measures_in(operand)
        case Binary(_, left, right):
            return (*measures_in(left), *measures_in(right))
    return ()
