"""Finding the blocks of an anchor: repeated modules that the whole stream goes through."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from suture.ir.errors import Code, SutureError, nearest
from suture.ir.graph import Graph, Value
from suture.ir.regions import ModuleTree, Region, module_tree, stacks


@dataclass(frozen=True)
class Block:
    """A module, or a part between two values, that leads from a cut value to a cut value."""

    path: str
    entry: Value
    exit: Value


def _block(region: Region, chain: Mapping[Value, int]) -> Block | None:
    """The region as a block, if it leads from a cut value to a cut value."""
    if len(region.outputs) != 1 or region.outputs[0] not in chain:
        return None
    entries = [value for value in region.inputs if value in chain]
    if not entries:
        return None
    return Block(region.name, max(entries, key=lambda value: chain[value]), region.outputs[0])


def named_blocks(graph: Graph, chain: Sequence[Value], at: Sequence[str]) -> list[Block]:
    """The modules whose paths fit a pattern of as many components.

    :param chain: the graph's cut values, in order
    :raises SutureError: SITE, if a pattern matches no module; CUT, if a module does not lead from a cut value to a cut value
    """
    order = {value: k for k, value in enumerate(chain)}
    trees = {tree.path: tree for tree in module_tree(graph).walk() if tree.path}
    found: dict[str, Block] = {}
    for pattern in at:
        depth = pattern.count(".")
        paths = [path for path in trees if path.count(".") == depth and fnmatch.fnmatchcase(path, pattern)]
        if not paths:
            raise SutureError(
                Code.SITE, f"the pattern {pattern!r} matches no module", where=graph.name,
                remedy=nearest(pattern, trees, what="module"),
            )  # fmt: skip
        for path in paths:
            region = trees[path].region
            block = _block(region, order)
            if block is None:
                crossing = ", ".join(str(value) for value in region.outputs[:4])
                raise SutureError(
                    Code.CUT, f"{path} does not lead from one cut value to another: {crossing} leave it", where=graph.name,
                    remedy="name modules that the whole stream goes through",
                )  # fmt: skip
            found[path] = block
    return list(found.values())


def repeating_blocks(graph: Graph, chain: Sequence[Value]) -> list[Block]:
    """The outermost family of numbered modules of which two neighbours have tensors of the same shapes; else the largest family.

    A family is all modules whose paths differ in numbers only; each of them must lead from a cut value to a cut value.
    """
    order = {value: k for k, value in enumerate(chain)}
    families: dict[str, list[ModuleTree]] = {}
    for tree in module_tree(graph).walk():
        if any(letter.isdigit() for letter in tree.path.rpartition(".")[2]):
            families.setdefault(re.sub(r"\d+", "*", tree.path), []).append(tree)
    whole: list[tuple[bool, int, list[Block]]] = []
    for trees in sorted(families.values(), key=lambda trees: trees[0].path.count(".")):
        blocks = [_block(tree.region, order) for tree in trees]
        chosen = [block for block in blocks if block is not None]
        if len(chosen) > 1 and len(chosen) == len(blocks):
            whole.append((_some_neighbours_alike(trees), len(chosen), chosen))
    if whole:
        alike = [family for family in whole if family[0]]
        return alike[0][2] if alike else max(whole, key=lambda family: family[1])[2]
    return _stacked_blocks(graph, order)


def _some_neighbours_alike(trees: Sequence[ModuleTree]) -> bool:
    shapes = [
        {
            (parameter.name.removeprefix(tree.path), tuple(parameter.shape))
            for parameter in tree.region.parameters
            if parameter.role == "parameter"
        }
        for tree in trees
    ]
    return any(a == b and a for a, b in pairwise(shapes))


def _stacked_blocks(graph: Graph, order: Mapping[Value, int]) -> list[Block]:
    """The blocks of the largest stack: what is left where paths say nothing."""
    found = [stack for stack in stacks(graph) if all(block.output in order for block in stack.blocks)]
    if not found:
        raise SutureError(
            Code.STITCH, "no two blocks follow one another", where=graph.name,
            remedy="name the blocks by their module paths",
        )  # fmt: skip
    largest = max(found, key=lambda stack: sum(block.parameter_count() for block in stack.blocks))
    return [Block(block.name, block.entry, block.output) for block in largest.blocks]
