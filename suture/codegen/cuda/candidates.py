"""Schedules worth measuring on a GPU, by group: the library or generated code for what both have, other tiles, other numbers of lanes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from suture.codegen.groups import Group
from suture.codegen.program import lower_one
from suture.codegen.ragged.grouping import RaggedGroup
from suture.codegen.schedule import CudaGemmSchedule, OwnerSchedule, Schedule, TraversalSchedule
from suture.codegen.step import Context
from suture.codegen.templates import templates
from suture.ir.errors import SutureError
from suture.ir.graph import Graph

LIBRARY = frozenset({"linear", "matmul", "addmm", "einsum", "conv", "conv_transpose", "attention"})
"""Operators that the GPU's libraries have."""

_WARP, _MOST = 32, 1024


def generated(graph: Graph) -> dict[str, Schedule]:
    """Schedules by which nothing is left to the library, so that groups are found as generated code would take them."""
    return {node.outputs[0].name: OwnerSchedule(False) for node in graph.nodes if node.operator.name in LIBRARY}


def candidates(group: Group, context: Context) -> list[Schedule]:
    """Schedules of a group, the default first; fewer than two where there is nothing to choose."""
    anchor = None if group.anchor is None else group.anchor.operator.name
    if anchor in LIBRARY:
        return [OwnerSchedule(), *templates()[anchor].candidates(group, context)]
    default = _schedule_of(group, context)
    if isinstance(default, CudaGemmSchedule):
        return _distinct(group, context, _tiles(default, _TILES.get(anchor or "", ())))
    if not isinstance(default, TraversalSchedule):
        return []
    if isinstance(group, RaggedGroup):
        pieces = [] if default.split else [replace(default, split=_PIECE)]
        return _distinct(group, context, [default, *(replace(default, rows=teams) for teams in _TEAMS), *pieces])
    return _distinct(group, context, _lanes(default)) if anchor is None else []


_TILES: Mapping[str, tuple[tuple[int, int], ...]] = {
    "grouped_linear": ((16, 128), (32, 128), (48, 64), (48, 256)),  # an inspector's tiles have 48 rows
    "grouped_outer": ((32, 128), (64, 128), (64, 256)),
}
"""Rows of a block's tile and lanes, for products by type."""
_TEAMS = (1, 4, 8, 32)
"""Teams of lanes that take turns at the rows of a segment: many for long segments, few for many short ones."""
_PIECE = 1024  # rows of long segments that a block takes, where a segment may be the work of several


def _schedule_of(group: Group, context: Context) -> Schedule | None:
    """The default's, where one kernel does all, or all but the pieces of long segments."""
    made = lower_one(group, context)
    return made[-1].schedule if len(made) == 1 or isinstance(group, RaggedGroup) else None


def _tiles(default: CudaGemmSchedule, tiles: Sequence[tuple[int, int]]) -> list[Schedule]:
    if default.lanes == _WARP:  # a single row or column
        return []
    return [default, *(replace(default, rows=rows, lanes=lanes) for rows, lanes in tiles)]


def _lanes(default: TraversalSchedule) -> list[Schedule]:
    """Half and twice the lanes; where a block takes a tile, half and a quarter of it too."""
    if default.lanes % _WARP:
        return []
    found: list[Schedule] = [default]
    for lanes in (default.lanes // 2, default.lanes * 2, default.lanes * 4):
        if _WARP <= lanes <= _MOST:
            whole = -(-default.tile // lanes) * lanes
            found.append(replace(default, lanes=lanes, tile=lanes if default.tile == default.lanes else whole))
    if default.rows > 1:
        found += [replace(default, rows=max(default.rows // part, 1)) for part in (2, 4)]
    elif default.tile > 4 * default.lanes:
        found += [replace(default, tile=default.tile // part // default.lanes * default.lanes) for part in (2, 4)]
    return found


def _distinct(group: Group, context: Context, schedules: Sequence[Schedule]) -> list[Schedule]:
    """Those that give kernels of their own."""
    found: dict[str, Schedule] = {}
    for each in schedules:
        try:
            made = lower_one(group, replace(context, schedules={**context.schedules, group.key: each}))
        except SutureError:  # tiles that do not divide among lanes
            continue
        found.setdefault("\n".join(str(step.kernel) for step in made), each)
    return list(found.values())
