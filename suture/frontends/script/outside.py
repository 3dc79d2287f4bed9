"""What a script needs from above, handed in: the language itself knows no backend and no display."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from suture.frontends.script.report import Outcome
from suture.frontends.script.steps import Step
from suture.ir.graph import Graph


class Difference(Protocol):
    """How far one output is off."""

    @property
    def max_abs(self) -> float:
        """The largest difference."""

    @property
    def relative(self) -> float:
        """The largest difference, relative to the reference."""

    @property
    def cosine(self) -> float:
        """The cosine of the angle between the two, flattened."""


class Differences(Protocol):
    """A comparison of two models, output by output."""

    @property
    def outputs(self) -> Sequence[Difference]:
        """One difference per output."""


@dataclass(frozen=True)
class Exporter:
    """How graphs leave to one kind of file, or to a folder."""

    write: Callable[..., Any]  # (graph, path, **options)
    options: Mapping[str, Any]  # option -> its type
    check: Callable[..., Any] | None = None  # (graph, **options): raises what can be known without weights


@dataclass(frozen=True)
class Backends:
    """What a script needs from above: the script language itself knows no backend."""

    compare: Callable[[Graph, Graph, Sequence[torch.Tensor]], Differences]  # the first is the yardstick
    exporters: Mapping[str, Exporter]
    builder: Exporter  # to a folder of sources


class Listener:
    """Is told of every statement; a progress display overrides what it wants to hear."""

    def begin(self, step: Step, index: int, total: int) -> None:
        """A statement begins."""

    def end(self, outcome: Outcome) -> None:
        """A statement came to its end."""
