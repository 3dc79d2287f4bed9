"""The traversal template: one pass, or a few, over a group's domain.

Lanes take the dimension that lies innermost in most of what is read and written. Where that is reduced, a block takes a row, and its lanes meet in
the end; where it is kept, lanes stand side by side over columns; where nothing is reduced, a block takes a tile. Of short rows that are only summed,
or looked up, a block takes several. Reductions split the work into passes.
"""

from __future__ import annotations

from collections.abc import Sequence

from suture.codegen.groups import Group
from suture.codegen.schedule import TraversalSchedule
from suture.codegen.step import Context, KernelStep
from suture.codegen.traversal.columns import ColumnWriter, MapWriter
from suture.codegen.traversal.domain import Run, Survey, Touch, join, survey
from suture.codegen.traversal.inner import InnerWriter, beside, only_sums, sums_schedule
from suture.codegen.traversal.rows import RowWriter
from suture.codegen.traversal.writer import fixed
from suture.ir.graph import Value
from suture.ir.sizes import Dim, evaluate_size, symbols_of

_GUESS = 64  # what a size that is not known is taken for
_SHORT = 16  # a row of fewer elements is not worth lanes of its own
_VECTOR = 8
_LANES = 64
_COLUMNS = (192, 128, 64)
_TILE = 4096
_EACH = 8  # elements of a row that one lane of a GPU has


def lower_group(group: Group, context: Context) -> list[KernelStep]:
    """The kernels of a group."""
    found = survey(group, context)
    runs = join(found)
    if not runs:
        runs = (Run(()),)
    summed = _summed(found, runs, group, context)
    if summed is not None:
        inner = InnerWriter(group, context, found, runs, summed, context.schedule(group, sums_schedule(summed)))
        if only_sums(inner.passes):
            return [inner.write()]
    lane = _lanes_run(found, runs)
    if lane.reduced:
        lanes = _lanes(lane, context.target) if context.target == "cpp" else _threads(lane)
        schedule = context.schedule(group, TraversalSchedule(lanes))
        return [RowWriter(group, context, found, runs, lane, schedule).write()]
    if any(run.reduced for run in runs):
        lanes = _column_lanes(lane, context.target)
        schedule = context.schedule(group, TraversalSchedule(lanes, lanes))
        return [ColumnWriter(group, context, found, runs, lane, schedule).write()]
    second = _second(found, runs, lane)
    schedule = context.schedule(group, _map_schedule(lane, second, context.target))
    writer = MapWriter(group, context, found, runs, lane, schedule)
    writer.second = second
    return [writer.write()]


def copy_group(value: Value) -> Group:
    """The group that writes a view's value into memory."""
    node = value.producer
    assert node is not None
    return Group(value.shape, nodes=[node], stores=(value,))


def _weight(touch: Touch, found: Survey) -> int:
    """The elements that a touch is about, sizes that are not known guessed."""
    total = 1
    for axis in found.domain.axes:
        if touch.step(axis.name) != 0 or axis.name in touch.looked:
            total *= max(_guess(axis.size), 1)
    return total


def _guess(size: Dim) -> int:
    return max(evaluate_size(size, dict.fromkeys(symbols_of(size), _GUESS)), 1)


def _lanes_run(found: Survey, runs: Sequence[Run]) -> Run:
    """The run that most of what is touched has side by side; of several, the innermost."""
    weights = {run: _contiguous(found, run) for run in runs}
    best = max(reversed(runs), key=weights.__getitem__)
    size = fixed(best)
    if best.reduced and size is not None and size < _SHORT:
        kept = [run for run in runs if not run.reduced]
        longest = max(reversed(kept), key=lambda run: _guess(run.size), default=None)
        if longest is not None and _guess(longest.size) >= _SHORT:
            return longest
    return best


def _summed(found: Survey, runs: Sequence[Run], group: Group, context: Context) -> Run | None:
    """The run that lies side by side and is summed, where a processor's lanes do best row by row: rows are looked up, or are about a vector long."""
    best = max(reversed(runs), key=lambda run: _contiguous(found, run))
    if context.target != "cpp" or not best.reduced or beside(group, runs, best) is None:
        return None
    looked_up = any(touch.looked for touch in found.touches)
    return best if looked_up or _VECTOR <= _guess(best.size) < _SHORT else None


def _contiguous(found: Survey, run: Run) -> int:
    if not run.axes:
        return 0
    return sum(_weight(touch, found) for touch in found.touches if touch.step(run.axes[-1].name) == 1)


def _second(found: Survey, runs: Sequence[Run], lane: Run) -> Run | None:
    """Another run that lies side by side in something as large: it and the lanes' run are then taken in squares."""
    others = [run for run in runs if run is not lane and 4 * _contiguous(found, run) >= _contiguous(found, lane) > 0]
    return max(others, key=lambda run: _contiguous(found, run), default=None)


def _lanes(run: Run, target: str) -> int:
    """As many lanes as waste the fewest, more where that is the same."""
    size = fixed(run)
    if size is None:
        return _LANES
    lanes = tuple(each for each in (48, 32, 16) if size <= each) or (_LANES,)
    lanes = lanes if target == "cpp" else (128, 64, 32)
    return min(lanes, key=lambda each: (-(-size // each) * each, -each))


def _threads(run: Run) -> int:
    """The lanes that reduce a row on a GPU: whole warps, as few as leave each a row's elements that fit its registers."""
    size = fixed(run)
    if size is None:
        return 256
    return min(max(-(-size // (_EACH * 32)) * 32, 32), 1024)


def _column_lanes(run: Run, target: str) -> int:
    """Columns that a block takes: so many that each line of memory that is read is a long one."""
    size = fixed(run)
    if target != "cpp" or size is None or size < _COLUMNS[-1]:
        return _lanes(run, target)
    return min(_COLUMNS, key=lambda each: (-(-size // each) * each, -each))


def _map_schedule(lane: Run, second: Run | None, target: str) -> TraversalSchedule:
    if not lane.axes:
        return TraversalSchedule(1, 1, 1)  # a single number
    lanes = _lanes(lane, target)
    if second is not None:
        return TraversalSchedule(lanes, lanes, 64)
    length = fixed(lane)
    if length is None or length >= _TILE:
        return TraversalSchedule(lanes, _TILE, 1)
    return TraversalSchedule(lanes, -(-max(length, 1) // lanes) * lanes, max(_TILE // max(length, 1), 1))
