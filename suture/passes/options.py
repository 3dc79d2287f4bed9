"""Options of a pass: read from its signature, typed by its annotations, checked with one line that says what would be right."""

from __future__ import annotations

import collections.abc
import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from suture.ir.errors import Code, SutureError, nearest

RESERVED = {
    "probes": "inputs to check the contract on, by name or in order; drawn at random if absent",
    "check": "whether to check the contract on the probes",
    "within": "the largest deviation allowed, for a pass that only approximates",
}
"""Keyword arguments that every pass takes besides its own."""


@dataclass(frozen=True)
class Option:
    """One option of a pass.

    `type` is the resolved annotation: `int`, `float`, `bool`, `str`, `tuple[T, ...]`, `Literal[...]`, `X | None`, a callable or a mapping.
    """

    name: str
    type: Any
    default: Any
    required: bool
    doc: str

    def convert(self, value: Any, owner: str) -> Any:
        """The value as the option's type: an integer becomes a float, a list a tuple, a single item a tuple of one.

        :raises SutureError: OPTION, if it has another type
        """
        try:
            return _convert(self.type, value)
        except _Misfit:
            raise SutureError(
                Code.OPTION,
                f"option {self.name!r} of {owner} cannot be {_show(value)}",
                remedy=f"it takes {describe(self.type)}",
            ) from None

    def __str__(self) -> str:
        default = "" if self.required else f" = {_show(self.default)}"
        return f"{self.name}: {describe(self.type)}{default}"


def read_options(function: Callable[..., Any]) -> tuple[Option, ...]:
    """The options of a pass function: its parameters after the graph and the notes, documented by `:param name:` lines."""
    hints = typing.get_type_hints(function)
    documents = _parameter_documents(inspect.getdoc(function) or "")
    options = []
    for parameter in list(inspect.signature(function).parameters.values())[2:]:
        if parameter.name in RESERVED:
            continue
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL) or parameter.name not in hints:
            raise TypeError(f"the pass {function.__name__} must name and annotate its options: {parameter}")
        required = parameter.default is parameter.empty
        default = None if required else parameter.default
        options.append(
            Option(parameter.name, hints[parameter.name], default, required, documents.get(parameter.name, ""))
        )
    return tuple(options)


def check_options(owner: str, options: Sequence[Option], given: Mapping[str, Any]) -> dict[str, Any]:
    """The given options converted to their types.

    :raises SutureError: OPTION, for one that is unknown (with the nearest name), of another type, or missing
    """
    known = {option.name: option for option in options}
    converted = {}
    for name, value in given.items():
        if name not in known:
            raise SutureError(
                Code.OPTION, f"{owner} has no option {name!r}", remedy=nearest(name, [*known, *RESERVED], what="option")
            )
        converted[name] = known[name].convert(value, owner)
    for option in options:
        if option.required and option.name not in given:
            raise SutureError(
                Code.OPTION, f"{owner} needs the option {option.name!r}", remedy=f"it takes {describe(option.type)}"
            )
    return converted


def describe(kind: Any) -> str:
    """A type as a person would say it: `a number`, `one of 'l1', 'l2'`, `texts`."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return ("one of " if len(arguments) > 1 else "") + ", ".join(repr(item) for item in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(item) for item in arguments)
    if origin is tuple:
        return "several of: " + describe(arguments[0]) if arguments else "several values"
    if _is_callable(kind):
        return "a function"
    if isinstance(origin or kind, type) and issubclass(origin or kind, collections.abc.Mapping):
        return "a mapping"
    words = {
        int: "an integer",
        float: "a number",
        bool: "true or false",
        str: "a text",
        type(None): "nothing",
        Any: "anything",
    }
    return words.get(kind, getattr(kind, "__name__", str(kind)))


class _Misfit(Exception):
    """A value that is not of the type."""


def _convert(kind: Any, value: Any) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin is typing.Literal:
        return _first(value in arguments and type(value) in {type(item) for item in arguments}, value)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(arguments, value)
    if origin is tuple:
        return _convert_tuple(arguments, value)
    if _is_callable(kind):
        return _first(callable(value), value)
    if kind is float:
        return float(_first(isinstance(value, int | float) and not isinstance(value, bool), value))
    if kind is int:
        return _first(isinstance(value, int) and not isinstance(value, bool), value)
    if kind is type(None):
        return _first(value is None, value)
    if kind is Path:
        return Path(_first(isinstance(value, str | Path), value))
    return _first(isinstance(value, origin or kind), value)


def _convert_union(kinds: Sequence[Any], value: Any) -> Any:
    exact = [kind for kind in kinds if kind is type(value)]
    for kind in [*exact, *kinds]:
        try:
            return _convert(kind, value)
        except _Misfit:
            continue
    raise _Misfit


def _convert_tuple(kinds: Sequence[Any], value: Any) -> tuple[Any, ...]:
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        items = tuple(value) if isinstance(value, list | tuple) else (value,)
        return tuple(_convert(kinds[0], item) for item in items)
    items = tuple(_first(isinstance(value, list | tuple) and len(value) == len(kinds), value))
    return tuple(_convert(kind, item) for kind, item in zip(kinds, items, strict=True))


def _first(fits: bool, value: Any) -> Any:
    if not fits:
        raise _Misfit
    return value


def _is_callable(kind: Any) -> bool:
    return (typing.get_origin(kind) or kind) is collections.abc.Callable


def _show(value: Any) -> str:
    if callable(value) and hasattr(value, "__name__"):
        return f"the function {value.__name__}"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _parameter_documents(text: str) -> dict[str, str]:
    found = re.findall(r":param (\w+):\s*(.*?)(?=\n\s*:|\n\s*\n|\Z)", text, re.DOTALL)
    return {name: " ".join(body.split()) for name, body in found}
