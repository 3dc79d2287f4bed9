"""centre: layer norms become RMS norms, because what they read has no mean any more (Ashkboos et al. 2024, SliceGPT, section 3.1)."""

from __future__ import annotations

import torch

from suture.ir.axes import Place, analyse
from suture.ir.graph import Graph, Node
from suture.passes.contract import Contract
from suture.passes.linear_maps import Dense, fixed_size
from suture.passes.registry import Notes, register
from suture.passes.symmetry.basis import Kind
from suture.passes.symmetry.norm_affine import BIAS, GAIN, operand_of
from suture.passes.symmetry.parameters import apply_map
from suture.passes.symmetry.reach import Reach, reach
from suture.passes.symmetry.sites import drop_unread, read_parameters
from suture.passes.symmetry.ties import Ties


@register(contract=Contract.EXACT)
def centre(graph: Graph, notes: Notes) -> Graph:
    """Take the mean away from everything that writes a residual stream, so that the layer norms that read it can be RMS norms.

    Writers are the rows of linear layers, their biases, embeddings and positional tables. A stream stays as it is if something writes it whose
    mean cannot be taken away (a norm with a gain of its own), or if something but a layer norm reads it.
    """
    result = graph.copy()
    done, stay = centre_all(result)
    for text in (*done, *stay):
        notes.note(text)
    if not done:
        notes.not_applicable("no stream can be centred" if stay else "there is no layer norm")
        return graph
    return result


def centre_all(graph: Graph) -> tuple[list[str], list[str]]:
    """Centre every stream in place; what was done, and what stays and why."""
    read, ties = read_parameters(graph), Ties(graph)
    table = analyse(graph)
    done: list[str] = []
    stay: list[str] = []
    ways: list[Reach] = []
    norms = [node for node in graph.nodes if node.operator.name == "layer_norm"]
    for norm in norms:
        if any(way.values.get(_place(norm)) for way in ways):
            continue
        found = reach(table, _place(norm), Kind.CENTRING)
        if isinstance(found, Reach):
            ways.append(found)
        else:
            stay.append(f"the stream that {norm.where()} reads is not centred: {found}")
    readers = [[norm for norm in norms if way.values.get(_place(norm))] for way in ways]
    for way, served in zip(ways, readers, strict=True):
        size = fixed_size(way.atom.size)
        centring = Dense(torch.eye(size, dtype=torch.float64) - 1.0 / size)
        count = len(way.tensors())
        apply_map(graph, table, way, centring, centring, "centred")
        done.append(f"{count} tensors write a stream of {size} without mean: {len(served)} layer norms are RMS norms")
    for norm in (norm for served in readers for norm in served):
        _to_rms_norm(graph, norm)
    done += ties.join()
    drop_unread(graph, read)
    return done, stay


def _place(norm: Node) -> Place:
    value = norm.inputs[0]
    assert value is not None
    return Place(value, value.rank - 1)


def _to_rms_norm(graph: Graph, norm: Node) -> None:
    """An RMS norm in place of a layer norm, of the same gain; a bias is added behind it."""
    name, bias = norm.output.name, operand_of(norm, BIAS)
    graph.rename_result(norm.output, f"{name}_layer_norm")
    attributes = {"rank": norm.attributes["rank"], "eps": norm.attributes["eps"]}
    result = graph.add(
        "rms_norm", [norm.inputs[0], operand_of(norm, GAIN)], attributes, path=norm.path,
        name=name if bias is None else f"{name}_normalised", before=norm,
    )  # fmt: skip
    if bias is not None:
        result = graph.add("add", [result.output, bias], path=norm.path, name=name, before=norm)
    graph.replace_uses(norm.output, result.output)
    graph.remove(norm)
