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

    def block_of(self, name: str) -> int | None:
        """The block that a name belongs to; None for names outside the stack."""
        number = self._number_of(name)
        inside = number is not None and self.first <= number < self.number(self.count)
        return (number - self.first) // self.span if number is not None and inside else None

    def _number_of(self, name: str) -> int | None:
        if not is_below(name, self.prefix):
            return None
        depth = len(self.prefix.split(".")) if self.prefix else 0
        parts = name.split(".")
        stem, number = numbered(parts[depth]) if len(parts) > depth else ("", None)
        return number if stem == self.stem else None

    def _shift(self, name: str, start: int, stop: int | None, offset: int) -> str:
        number = self._number_of(name)
        if number is None or number < start or (stop is not None and number >= stop):
            return name
        depth = len(self.prefix.split(".")) if self.prefix else 0
        parts = name.split(".")
        return ".".join([*parts[:depth], f"{self.stem}{number + offset}", *parts[depth + 1 :]])


def find_numbering(blocks: Sequence[Region]) -> Numbering | None:
    """How the blocks are numbered in their parameter names and paths; None if they are not, or share their parameters.

    The parameters that a block has for itself tell its numbers. The paths of its nodes add those of modules without parameters, but for modules that
    are another block's: one that blocks share has the path of the first of them in all.
    """
    names = [_own_names(block) for block in blocks]
    if not all(names):
        return None
    prefix = common_path(name for group in names for name in group)
    depth = len(prefix.split(".")) if prefix else 0
    parts = [[_part(name, depth) for name in group] for group in names]
    stems = {stem for group in parts for stem, _ in group}
    if len(stems) > 1 or any(number is None for group in parts for _, number in group):
        return None
    (stem,) = stems
    told = [{number for _, number in group if number is not None} for group in parts]
    every = set().union(*told)
    numbers = [
        sorted(own | (_path_numbers(block, prefix, depth, stem) - every))
        for block, own in zip(blocks, told, strict=True)
    ]
    starts = [group[0] for group in numbers]
    span = starts[1] - starts[0] if len(starts) > 1 else numbers[0][-1] - numbers[0][0] + 1
    if span < 1 or any(second - first != span for first, second in pairwise(starts)):
        return None
    if any(group[-1] >= group[0] + span for group in numbers):
        return None
    return Numbering(prefix, starts[0], span, len(blocks), stem)


def _own_names(block: Region) -> list[str]:
    return [parameter.name for parameter in block.own_parameters() if parameter.role != "constant"]


def _path_numbers(block: Region, prefix: str, depth: int, stem: str) -> set[int]:
    """The numbers in the paths of a block's nodes."""
    parts = [_part(node.path, depth) for node in block.nodes if node.path != prefix and is_below(node.path, prefix)]
    return {number for letters, number in parts if letters == stem and number is not None}


def _part(name: str, depth: int) -> tuple[str, int | None]:
    """The letters and the number of a name's part at a depth."""
    parts = name.split(".")
    return numbered(parts[depth]) if len(parts) > depth else ("", None)


def numbered(name: str) -> tuple[str, int | None]:
    """The letters and the number of a module's name: `encoder_layer_3` is `encoder_layer_` and 3."""
    match = re.fullmatch(r"(.*?)(0|[1-9]\d*)", name)
    return (match[1], int(match[2])) if match else (name, None)
