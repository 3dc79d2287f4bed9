"""A resolved statement: what its words mean, ready to be carried out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from suture.frontends.script.ast import Bound, Number, Statement, Text, Value
from suture.passes.registry import Pass

_CONSTANTS: Mapping[str, bool | None] = {"true": True, "false": False, "none": None}


@dataclass(frozen=True)
class Step:
    """A statement with what its words mean."""

    statement: Statement
    text: str
    operation: Pass | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    graphs: Mapping[str, tuple[str, ...]] = field(
        default_factory=dict
    )  # options that are other models: option -> their names
    arrays: Mapping[str, Path] = field(default_factory=dict)  # options that are tensors by name: option -> file
    spelled: Mapping[str, str] = field(default_factory=dict)  # how an option was written whose value does not print
    path: Path | None = None  # the file that is read or written
    probes: Path | None = None


def plain(value: Value) -> Any:
    """A value as Python has it; a comparison is its text (`>=3`)."""
    if isinstance(value, Bound):
        return f"{value.comparison}{value.number.text}"
    if isinstance(value, Number | Text):
        return value.value
    return _CONSTANTS.get(value.value, value.value)
