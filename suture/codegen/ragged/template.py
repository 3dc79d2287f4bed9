"""The template of traversals over segments: which way a group is written."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from suture.codegen.grouped.operands import is_computed
from suture.codegen.groups import Group
from suture.codegen.ragged.dense import DenseWriter
from suture.codegen.ragged.domain import count_of, is_fixed, survey
from suture.codegen.ragged.grouping import MEETING, RaggedGroup, operand_of, pointers_of
from suture.codegen.ragged.narrow import NarrowWriter
from suture.codegen.ragged.pieces import cut, locate
from suture.codegen.ragged.wide import WideWriter
from suture.codegen.step import Context, KernelStep, Template
from suture.ir.graph import Node

_NARROW = {"cpp": 1, "cuda": 4}  # features up to which lanes stand over rows


def refuses(node: Node, context: Context) -> str | None:
    """Why a node over segments is left to torch, or None."""
    operand = operand_of(node)
    if operand.dtype.is_complex or operand.dtype == torch.bool:
        return f"its element type is {operand.dtype}"
    if is_computed(pointers_of(node)):
        return "where its rows begin is computed"
    if any(dim == 0 for value in (operand, node.output) for dim in value.shape):
        return "it has no elements"
    return None


def lower(group: Group, context: Context) -> list[KernelStep]:
    """The kernels of a group."""
    assert isinstance(group, RaggedGroup)
    found = survey(group, context)
    few = is_fixed(found.domain) and count_of(found.domain) <= _NARROW[context.target]
    kind = DenseWriter if group.dense else NarrowWriter if few else WideWriter
    whole = kind(group, context, found)
    rows = -(-whole.schedule.split // whole.at_once) * whole.at_once
    if not rows or (isinstance(group.rows, int) and group.rows <= rows):
        return [whole.write()]
    pieces = cut(group, context, rows, [node for node in group.nodes if node.operator.name in MEETING])
    pieces.kept.update(whole.homes())
    passes = [number for number in range(whole.passes.count) if whole.has_rows(number)]
    made = [locate(pieces, context)]
    made += [kind(group, context, found, pieces, number).write() for number in passes]
    return [*made, kind(group, context, found, pieces).write()]


TEMPLATE = Template(lower, refuses, lambda anchor, node: False)
TEMPLATES: Mapping[str, Template] = dict.fromkeys(("csr_sum", "csr_max", "csr_spread"), TEMPLATE)
"""Operator -> template."""
