"""Fuse: several nodes become one operator that runtimes have a kernel for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

import torch

from suture.ir.errors import Code, SutureError, nearest
from suture.ir.graph import Graph
from suture.passes.contract import Contract
from suture.passes.fusion.patterns import FUSIONS, PREPARING
from suture.passes.proving import Proof
from suture.passes.registry import Notes, register
from suture.passes.rewriting import rewrite

TARGETS: Mapping[str, tuple[str, ...]] = {
    "portable": ("rows", "grouped", "attention"),
    "onnxruntime": ("rows", "grouped", "rotary", "attention", "projection", "residual", "gelu"),
}
"""Target -> the kinds that pay there. Skip connections with norms are left apart: ONNX Runtime's kernel for both is slower than its two on a CPU."""

_SHOWN = 12  # near misses that are told one by one


@register(contract=Contract.EXACT)
def fuse(
    graph: Graph,
    notes: Notes,
    *,
    target: Literal["onnxruntime", "portable"] = "onnxruntime",
    include: tuple[str, ...] = (),
    exclude: tuple[str, ...] = (),
    probes: Sequence[torch.Tensor] | Mapping[str, torch.Tensor] | None = None,
) -> Graph:
    """Write several nodes as one where a target has an operator for them; `expand` puts them back.

    Dropout goes: what is fused is meant to run, not to train.

    :param target: whose operators: those of ONNX Runtime, or ONNX's own
    :param include: further kinds of fusions, or `all`
    :param exclude: kinds of fusions to leave
    """
    chosen = kinds_for(target, include, exclude)
    result = graph.copy()
    proof = Proof.of(graph, probes) if notes.checked else None
    dropped = _drop_dropout(result)
    missed: dict[str, str] = {}
    for kind in chosen:
        left = rewrite(result, FUSIONS[kind], notes, proof=proof)
        missed |= {} if kind in PREPARING else left
    _tell(notes, missed, dropped)
    if not notes.rewrites and not dropped:
        notes.not_applicable("no pattern of " + ", ".join(chosen) + " is there")
    return result


def kinds_for(target: str, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> tuple[str, ...]:
    """The kinds of fusions that are looked for, in order.

    :raises SutureError: OPTION, for a kind that does not exist
    """
    for kind in (*include, *exclude):
        if kind not in FUSIONS and kind != "all":
            raise SutureError(
                Code.OPTION,
                f"there is no kind of fusion {kind!r}",
                remedy=nearest(kind, [*FUSIONS, "all"], what="kind"),
            )
    wanted = set(FUSIONS) if "all" in include else {*TARGETS[target], *include}
    return tuple(kind for kind in FUSIONS if kind in wanted and kind not in exclude and "all" not in exclude)


def _drop_dropout(graph: Graph) -> int:
    """Let what reads a dropout read what it reads: in evaluation they are the same."""
    found = [node for node in graph.nodes if node.operator.name == "dropout" and node.inputs[0] is not None]
    for node in found:
        source = node.inputs[0]
        assert source is not None
        graph.replace_uses(node.output, source)
        graph.remove(node)
    return len(found)


def _tell(notes: Notes, missed: Mapping[str, str], dropped: int) -> None:
    counts = Counter(f"{entry.rule}: {entry.text}" for entry in notes.rewrites)
    for text, count in counts.items():
        notes.note(f"{text}{f', {count} times' if count > 1 else ''}")
    if dropped:
        notes.note(f"dropout: {dropped} removed")
    for site, reason in list(missed.items())[:_SHOWN]:
        notes.note(f"left: {site}: {reason}")
    if len(missed) > _SHOWN:
        notes.note(f"left: {len(missed) - _SHOWN} more sites")
