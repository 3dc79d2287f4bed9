"""fold_gains: the affine part of norms becomes part of the layers that read them (Ashkboos et al. 2024, SliceGPT, section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from suture.ir.graph import Graph, Node, Parameter, Value
from suture.passes.contract import Contract
from suture.passes.registry import Notes, register
from suture.passes.symmetry.linear_readers import Readers, linear_readers, move_into_readers
from suture.passes.symmetry.norm_affine import BIAS, GAIN, numbers_of, operand_of, refuse_norm
from suture.passes.symmetry.parameters import like
from suture.passes.symmetry.reach import Blame
from suture.passes.symmetry.sites import chosen, drop_unread, read_parameters
from suture.passes.symmetry.ties import Ties

_NORMS = ("layer_norm", "rms_norm")
_BETWEEN = ("cast", "clone", "dropout", "mul")


@register(contract=Contract.EXACT)
def fold_gains(graph: Graph, notes: Notes, *, at: tuple[str, ...] | None = None) -> Graph:
    """Fold the gains and biases of layer norms and RMS norms into the layers that read them, if all of these are linear.

    `W (gain x + bias) + c` is `(W diag(gain)) x + (c + W bias)`: the norm needs no numbers of its own any more. A tensor that is shared with a place
    that does not read the norm (an embedding that is the head as well) is untied.

    :param at: module paths of norms, as patterns; all if absent
    """
    result = graph.copy()
    done, stay = fold_all(result, at)
    for text in (*done, *stay):
        notes.note(text)
    if not done:
        notes.not_applicable("no norm's gain can be folded" if stay else "no norm has a gain or a bias")
        return graph
    return result


def fold_all(graph: Graph, at: tuple[str, ...] | None = None) -> tuple[list[str], list[str]]:
    """Fold in place; what was done, and what stays and why."""
    sites, read, ties = _sites(graph, at), read_parameters(graph), Ties(graph)
    done: list[str] = []
    stay: list[str] = []
    for site in sites:
        where, text = site.where(), _fold(graph, site)
        if isinstance(text, Blame):
            stay.append(f"{where} keeps its affine part: {text}")
        else:
            done.append(text)
    untied = ties.join()
    drop_unread(graph, read)
    return [*done[::-1], *untied], stay[::-1]


@dataclass(frozen=True)
class _Behind:
    """A gain that is multiplied, or a bias that is added, behind a norm."""

    node: Node
    numbers: Parameter
    data: Value


def _fold(graph: Graph, node: Node) -> str | Blame:
    behind = _behind_norm(node)
    if behind is not None:
        return _fold_behind(graph, behind)
    if refusal := refuse_norm(node):
        return Blame(node.where(), refusal, node)
    bias = operand_of(node, BIAS)
    shifted = bias is not None and (bias.data.is_meta or bool((bias.data != 0).any()))
    found = linear_readers(graph, node, shifted=shifted)
    gain, shift = numbers_of(node, GAIN, 1.0), numbers_of(node, BIAS, 0.0)
    if isinstance(found, Blame) and shifted:
        return _fold_gain_alone(graph, node, gain, shift, found)
    if isinstance(found, Blame):
        return found
    text = f"the affine part of {node.where()} is part of {_names(found)}"
    move_into_readers(graph, found, gain, -shift if shifted else None, "plain")
    _take_away(node, GAIN)
    _take_away(node, BIAS)
    return text


def _fold_gain_alone(graph: Graph, node: Node, gain: torch.Tensor, bias: torch.Tensor, why: Blame) -> str | Blame:
    """Where the bias cannot reach the layers it stays, divided by the gain."""
    divisible = gain.is_meta or bool((gain.abs() > torch.finfo(node.output.dtype).tiny).all())
    found = linear_readers(graph, node, shifted=False) if divisible and operand_of(node, GAIN) is not None else why
    if isinstance(found, Blame):
        return why
    held = operand_of(node, BIAS)
    assert held is not None
    text = f"the gain of {node.where()} is part of {_names(found)}; its bias stays, {why}"
    move_into_readers(graph, found, gain, None, "plain")
    held.assign(like(bias / gain, held))
    _take_away(node, GAIN)
    return text


def _fold_behind(graph: Graph, behind: _Behind) -> str | Blame:
    adds = behind.node.operator.name == "add"
    found = linear_readers(graph, behind.node, shifted=adds)
    if isinstance(found, Blame):
        return found
    text = f"the {'bias' if adds else 'gain'} {behind.numbers.name} is part of {_names(found)}"
    numbers = behind.numbers.data.detach().to(torch.float64).reshape(-1)
    scale, shift = (torch.ones_like(numbers), -numbers) if adds else (numbers, None)
    move_into_readers(graph, found, scale, shift, "plain")
    graph.replace_uses(behind.node.output, behind.data)
    graph.remove(behind.node)
    return text


def _sites(graph: Graph, at: tuple[str, ...] | None) -> list[Node]:
    """From the last to the first, as a bias goes before the gain that stands before it."""
    sites = [
        node for node in reversed(graph.nodes)
        if (node.operator.name in _NORMS and any(node.inputs[1:])) or _behind_norm(node) is not None
    ]  # fmt: skip
    return chosen(sites, at, "norm with a gain or a bias")


def _behind_norm(node: Node) -> _Behind | None:
    if node.operator.name not in ("mul", "add") or len(node.inputs) != 2:
        return None
    for numbers, data in (node.inputs, node.inputs[::-1]):
        if not isinstance(numbers, Parameter) or data is None or data.type != node.output.type:
            continue
        source = data.producer
        while source is not None and source.operator.name in _BETWEEN:
            source = next((v.producer for v in source.inputs if v is not None and v.producer is not None), None)
        along_last = numbers.rank and numbers.shape[-1] == data.shape[-1] and numbers.data.numel() == numbers.shape[-1]
        if source is not None and source.operator.name in _NORMS and source.attributes["rank"] == 1 and along_last:
            return _Behind(node, numbers, data)
    return None


def _take_away(node: Node, index: int) -> None:
    if index < len(node.inputs):
        node.replace_input(index, None)


def _names(found: Readers) -> str:
    shown = [layer.node.path or layer.node.outputs[0].name for layer in found.layers]
    return ", ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "")
