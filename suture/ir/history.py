"""What a graph remembers of where it comes from: the surgeries it went through, and how the traced module is called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Record:
    """One surgery that a graph went through: the pass, its options, what it promised and what came of it."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    contract: str = "exact"
    outcome: str = "done"  # or "not applicable"
    notes: tuple[str, ...] = ()
    deviation: float | None = None


@dataclass(frozen=True)
class Structure:
    """How the traced module is called: the nesting of its arguments and results, as serialised pytree specs.

    `arguments` names every argument in call order; the first `positional` of them are passed by position. The specs flatten `(args, kwargs)` and the
    result into leaves: those that are no tensors stand in `fixed_inputs` and `fixed_outputs`, JSON objects from the leaf's position to its value;
    the others are the graph's inputs and outputs, in order.
    """

    inputs: str
    outputs: str
    arguments: tuple[str, ...]
    positional: int
    fixed_inputs: str = "{}"
    fixed_outputs: str = "{}"
