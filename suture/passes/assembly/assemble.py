"""Assembly of a model from parts: drop, share or swap the regions of least measured influence, or those that are named."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph
from suture.ir.regions import at_path
from suture.passes.assembly.region_edits import Action, edits, measure, regions_at
from suture.passes.contract import Contract
from suture.passes.registry import Notes, register


@register(contract=Contract.APPROXIMATE)
def assemble(
    graph: Graph,
    notes: Notes,
    *,
    action: Action = "drop",
    at: tuple[str, ...] | None = None,
    count: int | None = None,
    other: Graph | None = None,
    data: Mapping[str, torch.Tensor] | None = None,
) -> Graph:
    """Drop regions, let them share the weights of like ones, or swap them for another model's.

    With data the least influential goes first, and each choice is measured on the model as the choices before it have left it.

    :param action: drop lets the stream pass by a region; share ties its parameters to those of the like region that changes the outputs least;
        swap gives it the tensors that another model has at the same path
    :param at: module paths, as patterns ("up*.*.resnets.*"); numbered modules of several nodes that keep the type of their stream if absent
    :param count: how many regions, chosen by their influence; all that match if absent
    :param other: for swap, the other model: a sibling of the same architecture
    :param data: calibration inputs by name, on which the influence is measured (in a script: an .npz or .safetensors file)
    """
    is_planned = any(parameter.data.is_meta for parameter in graph.parameters.values())
    _check_options(action, count, other, measured=is_planned or data is not None)
    result = graph.copy()
    if is_planned and count is not None:
        notes.note("estimated: the weights decide which regions count least; here it is the first")
    measured = None if is_planned else data
    waiting = [region.name for region in regions_at(result, at, action)]
    stand_ins, kept = list(waiting), set[str]()
    done = 0
    while waiting and done != count:
        regions, likes = ([at_path(result, path) for path in paths] for paths in (waiting, stand_ins))
        possible = edits(regions, action, other=other, stand_ins=likes)
        if not possible:
            break
        if measured is None:
            edit, said = possible[0], possible[0].path + (f" with {possible[0].like}" if possible[0].like else "")
        else:
            least = measure(result, measured, possible)[0]
            edit, said = least.edit, str(least)
        edit.apply(result)
        notes.note(f"{action}: {said}")
        done += 1
        # What lends its weights keeps them, and what has borrowed some lends none.
        kept.add(edit.like)
        stand_ins = [path for path in stand_ins if path != edit.path]
        waiting = [path for path in waiting if path != edit.path and path not in kept]
    if not done:
        notes.not_applicable("no two of the regions are alike")
        return graph
    if count is not None and done < count:
        notes.note(f"{done} of {count}: no further region is left that another can stand in for")
    return result


def _check_options(action: Action, count: int | None, other: Graph | None, *, measured: bool) -> None:
    if action == "swap" and other is None:
        raise SutureError(Code.OPTION, "a swap needs another model", remedy="give the option 'other'")
    if action != "swap" and other is not None:
        raise SutureError(
            Code.OPTION, f"the action {action} takes no other model", remedy="leave the option 'other' out"
        )
    if count is not None and count < 1:
        raise SutureError(Code.KEEP, f"{count} regions cannot be chosen", remedy="1 or more would be right")
    if count is not None and not measured:
        raise SutureError(
            Code.CALIBRATION, "which regions count least is measured on data, and there are none",
            remedy="give data, or name the regions by 'at' and leave 'count' out",
        )  # fmt: skip
