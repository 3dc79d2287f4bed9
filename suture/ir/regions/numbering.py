"""How the blocks of a stack are numbered in the model's own names: `model.layers.3.mlp.up_proj.weight` is block 3 below `model.layers`.

A number may have letters before it, as in `encoder.layers.encoder_layer_3` or `s3.b2`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from suture.ir.paths import common_path, is_below
from suture.ir.regions.region import Region


@dataclass(frozen=True)
class Numbering:
    """The blocks below `prefix` have the numbers `first`, `first + span`, ...: a block may take several (pairs of layers, flat sequences).

    :param stem: the letters before the number
    """

    prefix: str
    first: int
    span: int
    count: int
    stem: str = ""

    def number(self, block: int) -> int:
        """The first number of a block."""
        return self.first + block * self.span

    def path(self, block: int) -> str:
        """The module path of a block, its first one if it takes several."""
        leaf = f"{self.stem}{self.number(block)}"
        return f"{self.prefix}.{leaf}" if self.prefix else leaf

    def move(self, name: str, source: int, target: int) -> str:
        """A name inside block `source`, as it reads in block `target`; other names stay."""
        return self._shift(name, self.number(source), self.number(source) + self.span, (target - source) * self.span)

    def make_room(self, name: str, count: int) -> str:
        """A name behind the stack, as it reads when the stack has `count` blocks; other names stay."""
        return self._shift(name, self.number(self.count), None, (count - self.count) * self.span)

    def _shift(self, name: str, start: int, stop: int | None, offset: int) -> str:
        if not is_below(name, self.prefix):
            return name
        depth = len(self.prefix.split(".")) if self.prefix else 0
        parts = name.split(".")
        stem, number = numbered(parts[depth]) if len(parts) > depth else ("", None)
        if stem != self.stem or number is None or number < start or (stop is not None and number >= stop):
            return name
        return ".".join([*parts[:depth], f"{stem}{number + offset}", *parts[depth + 1 :]])


def find_numbering(blocks: Sequence[Region]) -> Numbering | None:
    """How the blocks are numbered in their paths and parameter names; None if they are not, or share their parameters."""
    names = [_names(block) for block in blocks]
    if not all(names):
        return None
    prefix = common_path(name for group in names for name in group)
    depth = len(prefix.split(".")) if prefix else 0
    stems: set[str] = set()
    numbers: list[list[int]] = []
    for group in names:
        parts = [numbered((*name.split("."), *[""] * (depth + 1))[depth]) for name in group]
        stems |= {stem for stem, _ in parts}
        numbers.append(sorted({number for _, number in parts if number is not None}))
        if len(stems) > 1 or any(number is None for _, number in parts):
            return None
    starts = [group[0] for group in numbers]
    span = starts[1] - starts[0] if len(starts) > 1 else numbers[0][-1] - numbers[0][0] + 1
    if span < 1 or any(second - first != span for first, second in pairwise(starts)):
        return None
    if any(group[-1] >= group[0] + span for group in numbers):
        return None
    return Numbering(prefix, starts[0], span, len(blocks), stems.pop())


def numbered(name: str) -> tuple[str, int | None]:
    """The letters and the number of a module's name: `encoder_layer_3` is `encoder_layer_` and 3."""
    match = re.fullmatch(r"(.*?)(0|[1-9]\d*)", name)
    return (match[1], int(match[2])) if match else (name, None)


def _names(block: Region) -> list[str]:
    """What carries the block's number: the names of its own parameters, and the paths of its nodes where parameters are below a common one."""
    own = [parameter.name for parameter in block.own_parameters() if parameter.role != "constant"]
    if not own:
        return []
    return [*own, *(node.path for node in block.nodes if node.path and "." in node.path and _leaf_path(node.path, own))]


def _leaf_path(path: str, names: Sequence[str]) -> bool:
    """Whether a path is as deep as a module that holds parameters: the paths of the enclosing modules carry no number."""
    return len(path.split(".")) >= min(len(name.split(".")) for name in names) - 1
