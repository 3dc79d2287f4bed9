"""Schedules of a traversal that are worth measuring on a processor: other lanes, and other tiles or numbers of rows."""

from __future__ import annotations

from dataclasses import replace

from suture.codegen.groups import Group
from suture.codegen.schedule import TraversalSchedule
from suture.codegen.step import Context
from suture.codegen.traversal.template import lower_group

_LANES = (32, 64, 128)  # from two vectors of a processor on: one after the other they need not wait for one another
_FACTORS = (0.25, 4)


def candidates(group: Group, context: Context) -> list[TraversalSchedule]:
    """Schedules that give kernels of their own, the default first."""
    default = lower_group(group, context)[0].schedule
    assert isinstance(default, TraversalSchedule)
    found: dict[str, TraversalSchedule] = {}
    for each in (default, *_others(default)):
        [step] = lower_group(group, replace(context, schedules={**context.schedules, group.key: each}))
        found.setdefault(str(step.kernel), each)
    return list(found.values())


def _others(default: TraversalSchedule) -> list[TraversalSchedule]:
    lanes, tile, rows = default.lanes, default.tile, default.rows
    if lanes == 1:  # a single number
        return []
    found = [
        TraversalSchedule(each, each if tile == lanes else -(-tile // each) * each, rows)
        for each in _LANES
        if each != lanes
    ]
    if rows > 1:
        found += [replace(default, rows=max(int(rows * factor), 1)) for factor in _FACTORS]
    elif tile > lanes:
        found += [replace(default, tile=max(int(tile * factor) // lanes, 1) * lanes) for factor in _FACTORS]
    return found
