"""Stacks: maximal runs of isomorphic blocks, in structure and shapes, whatever the names of their modules.

The segments between cut values spell a word; a stack is a place where a shorter word repeats in it. Where that word could begin at several
places, it begins where the modules do. Blocks that lie beside the main path (branches of a multi-resolution network) are found as numbered
modules, each of which feeds the next.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from suture.ir.errors import Code, SutureError, nearest
from suture.ir.graph import Graph, Node, Value
from suture.ir.paths import common_path, is_below
from suture.ir.regions.cuts import descendants, segments
from suture.ir.regions.isomorphism import difference, signature
from suture.ir.regions.numbering import Numbering, find_numbering, numbered
from suture.ir.regions.region import ModuleTree, Region, at_path, module_tree, private_nodes


@dataclass(frozen=True, eq=False)
class Stack:
    """Isomorphic regions, each of which feeds the next: their common name, and how they are numbered if they are."""

    name: str
    blocks: tuple[Region, ...]
    numbering: Numbering | None

    @property
    def graph(self) -> Graph:
        """The graph that the blocks belong to."""
        return self.blocks[0].graph

    @property
    def entry(self) -> Value:
        """The value that flows into the first block."""
        return self.blocks[0].entry

    @property
    def exit(self) -> Value:
        """The value that flows out of the last block."""
        return self.blocks[-1].output

    def nodes(self) -> tuple[Node, ...]:
        """The nodes of all blocks."""
        return tuple(node for block in self.blocks for node in block.nodes)

    def parameter_count(self) -> int:
        """The trained elements of all blocks."""
        return sum(
            {p: p.data.numel() for block in self.blocks for p in block.parameters if p.role == "parameter"}.values()
        )

    def __len__(self) -> int:
        return len(self.blocks)

    def __repr__(self) -> str:
        return f"<stack {self.name}: {len(self)} blocks of {len(self.blocks[0])} nodes>"


def stacks(graph: Graph, minimum: int = 2) -> tuple[Stack, ...]:
    """The stacks of at least `minimum` blocks that have parameters, in the graph's order; no two share a node."""
    found: list[Stack] = []
    taken: set[Node] = set()
    for blocks in (*_on_the_way(graph, minimum), *_beside_the_way(graph, minimum)):
        nodes = {node for block in blocks for node in block.nodes}
        if taken.isdisjoint(nodes):
            taken |= nodes
            found.append(_stack(blocks))
    position = {node: k for k, node in enumerate(graph.nodes)}
    return _named_apart(sorted(found, key=lambda stack: position[stack.blocks[0].nodes[0]]))


def stack_at(graph: Graph, at: str | None = None) -> Stack:
    """The stack at a module path, or pattern; the one with most parameters if absent.

    A path that names one numbered block (`layer2.1`) that keeps the type of its stream gives that block, as a stack of one.

    :raises SutureError: REGION, if the graph has none, or the modules there are not alike (the first difference is named); SITE, if none is there
    """
    known = stacks(graph)
    if at is None:
        if not known:
            raise SutureError(
                Code.REGION,
                "no region of the graph repeats",
                where=graph.name,
                remedy="a model of equal blocks would be right",
            )
        return max(known, key=Stack.parameter_count)
    exact = [stack for stack in known if fnmatch.fnmatchcase(stack.name, at)]
    if len(exact) == 1:
        return exact[0]
    if len(exact) > 1:
        raise SutureError(
            Code.SITE,
            f"the pattern {at!r} matches {len(exact)} stacks: {', '.join(stack.name for stack in exact)}",
            remedy="name one of them",
        )
    single = _single_block(graph, at)
    if single is None:
        raise _no_stack(graph, at, known)
    return single


def _single_block(graph: Graph, at: str) -> Stack | None:
    prefix, _, leaf = at.rpartition(".")
    stem, number = numbered(leaf)
    if number is None or not any(is_below(node.path, at) for node in graph.nodes):
        return None
    region = at_path(graph, at)
    if len(region.outputs) != 1 or region.stream is None or region.stream.type != region.output.type:
        return None
    return Stack(at, (region,), Numbering(prefix, number, 1, 1, stem))


def _no_stack(graph: Graph, at: str, known: Sequence[Stack]) -> SutureError:
    """Why there is none: the modules there differ, or there are none."""
    for tree in module_tree(graph).walk():
        if tree.path == at:
            regions = _numbered(tree)
            for one, other in pairwise(regions):
                found = difference(one, other)
                if found:
                    return SutureError(
                        Code.REGION,
                        f"{other.name} is not like {one.name}: {found}",
                        where=at,
                        remedy="blocks of the same structure would be right",
                    )
    return SutureError(
        Code.SITE,
        f"there is no stack {at!r}",
        where=graph.name,
        remedy=nearest(at, [stack.name for stack in known], what="stack"),
    )


def _stack(blocks: Sequence[Region]) -> Stack:
    numbering = find_numbering(blocks)
    name = numbering.prefix if numbering else common_path(block.name for block in blocks if " .. " not in block.name)
    return Stack(name or f"{blocks[0].entry} .. {blocks[-1].output}", tuple(blocks), numbering)


def _named_apart(found: Sequence[Stack]) -> tuple[Stack, ...]:
    """Stacks in the same flat sequence go by their first blocks, so that each can be named."""
    names = [stack.name for stack in found]
    return tuple(
        dataclasses.replace(stack, name=stack.blocks[0].name) if names.count(stack.name) > 1 else stack
        for stack in found
    )


def _on_the_way(graph: Graph, minimum: int) -> Iterator[tuple[Region, ...]]:
    for source in graph.inputs:
        pieces = segments(graph, source)
        flowing = descendants(graph, source)
        words: dict[tuple[Any, ...], int] = {}
        letters = [words.setdefault(signature(piece), len(words)) for piece in pieces]
        start = 0
        while start < len(pieces):
            run = _longest_run(letters, pieces, start, minimum)
            if run is None or _is_surpassed(run, letters, pieces, start, minimum):
                start += 1
                continue
            begin, period, count = run
            groups = [pieces[begin + k * period : begin + (k + 1) * period] for k in range(count)]
            yield tuple(_block(graph, group, flowing) for group in groups)
            start = begin + period * count


def _is_surpassed(
    run: tuple[int, int, int], letters: Sequence[int], pieces: Sequence[Region], start: int, minimum: int
) -> bool:
    """Whether a longer run begins inside a run: a layer before a stack may be like the first layer of its blocks."""
    begin, period, count = run
    for later in range(start + 1, begin + period * count):
        other = _longest_run(letters, pieces, later, minimum)
        if other is not None and begin < other[0] < begin + period * count and other[1] * other[2] > period * count:
            return True
    return False


def _longest_run(
    letters: Sequence[int], pieces: Sequence[Region], start: int, minimum: int
) -> tuple[int, int, int] | None:
    """The run that begins at `start`, or as little later as its modules ask for: (begin, period, number of blocks)."""
    best: tuple[int, int, int] | None = None
    standing: tuple[bool, int] = (False, 0)
    for period in range(1, (len(letters) - start) // minimum + 1):
        length = period
        while start + length < len(letters) and letters[start + length] == letters[start + length - period]:
            length += 1
        if length // period < minimum or not any(p.parameters for p in pieces[start : start + period]):
            continue
        begin, whole = _aligned(pieces, start, period, length)
        covered = length // period * period
        if best is None or (whole, covered) > standing:  # of several periods that say the same, the shortest
            best, standing = (begin, period, length // period), (whole, covered)
    return best


def _aligned(pieces: Sequence[Region], start: int, period: int, length: int) -> tuple[int, bool]:
    """Where the blocks of a run begin: of the places that lose no block, the first where no module lies in two blocks; and whether there is one."""
    count = length // period
    for begin in range(start, start + period):
        if (start + length - begin) // period < count:
            break
        blocks = [pieces[begin + k * period : begin + (k + 1) * period] for k in range(count)]
        paths = [{node.path for piece in block for node in piece.nodes} for block in blocks]
        shared = common_path(path for group in paths for path in group)
        depth = len(shared.split(".")) if shared else 0
        modules = [{".".join(path.split(".")[: depth + 1]) for path in group} for group in paths]
        if sum(map(len, modules)) == len(set().union(*modules)):
            return begin, True
    return start, False


def _block(graph: Graph, pieces: Sequence[Region], flowing: set[Node]) -> Region:
    nodes = {node for piece in pieces for node in piece.nodes}
    path = common_path(node.path for node in nodes)
    entry, exit = pieces[0].entry, pieces[-1].output
    return Region(graph, private_nodes(graph, nodes, path, flowing), path or f"{entry} .. {exit}", entry)


def _beside_the_way(graph: Graph, minimum: int) -> Iterator[tuple[Region, ...]]:
    """Numbered modules that feed one another, wherever they lie."""
    for tree in module_tree(graph).walk():
        run: list[Region] = []
        for region in _numbered(tree):
            if run and not (region.stream is run[-1].outputs[0] and difference(run[-1], region) is None):
                if len(run) >= minimum:
                    yield tuple(run)
                run = []
            if len(region.outputs) == 1 and region.parameters:
                run.append(region)
        if len(run) >= minimum:
            yield tuple(run)


def _numbered(tree: ModuleTree) -> list[Region]:
    numbered = sorted((int(name), child) for name, child in tree.children.items() if name.isdecimal())
    return [child.region for _, child in numbered]
