"""What a GPU's libraries do by default: cuDNN's convolutions and flash attention use the device better than generated code does."""

from __future__ import annotations

from dataclasses import replace

from suture.codegen.schedule import OwnerSchedule
from suture.codegen.step import Context, Template
from suture.ir.graph import Node


def library_on_gpu(template: Template, why: str) -> Template:
    """A template that leaves its nodes to torch on a GPU, unless a schedule is chosen for one, or there is no torch to leave it to.

    :param why: the reason that a program gives
    """

    def refuses(node: Node, context: Context) -> str | None:
        if is_librarys(node, context):
            return why
        return template.refuses(node, context)

    return replace(template, refuses=refuses)


def is_librarys(node: Node, context: Context) -> bool:
    """Whether a node that a library has is left to it."""
    if context.target != "cuda" or context.alone:
        return False
    return context.schedules.get(node.outputs[0].name, OwnerSchedule()) == OwnerSchedule()
