"""rotate: an orthogonal matrix on a residual stream that RMS norms read (SliceGPT, Ashkboos et al. 2024a; QuaRot, Ashkboos et al. 2024b)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch

from suture.ir.algebra import atoms_of
from suture.ir.axes import AxisTable, Place, analyse
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph, Node, Value
from suture.ir.semantics import evaluate
from suture.passes.contract import Contract
from suture.passes.linear_maps import Dense, fixed_size
from suture.passes.registry import Notes, register
from suture.passes.symmetry.basis import Kind
from suture.passes.symmetry.centre import centre_all
from suture.passes.symmetry.fold_gains import fold_all
from suture.passes.symmetry.fold_scale import fold_factors
from suture.passes.symmetry.orthogonal import hadamard, principal_axes, random_rotation
from suture.passes.symmetry.parameters import apply_map
from suture.passes.symmetry.reach import Reach, reach
from suture.passes.symmetry.ties import Ties

By = Literal["hadamard", "random", "pca"]


@register(contract=Contract.EXACT)
def rotate(
    graph: Graph,
    notes: Notes,
    *,
    by: By = "hadamard",
    data: Mapping[str, torch.Tensor] | None = None,
    prepare: bool = True,
    seed: int = 0,
) -> Graph:
    """Rotate the residual streams that RMS norms read: writers take the matrix, readers its inverse.

    A rotation keeps a vector's length, so an RMS norm without a gain goes along with it. Layer scales and gains are folded first, and the streams
    of layer norms centred, where the pass may do so.

    :param by: a randomised Hadamard matrix, a random rotation, or the principal axes of what the norms write (needs data), the largest first
    :param data: calibration inputs by name (in a script: an .npz or .safetensors file that holds them)
    :param prepare: whether gains and layer scales may be folded and streams centred first
    :param seed: the key of random matrices
    """
    _check(graph, by, data)
    result = graph.copy()
    done: list[str] = []
    if prepare:
        for step in (fold_factors, centre_all, fold_all):
            did, _ = step(result)
            done += did
    rotated, stay = rotate_all(result, by=by, data=data, seed=seed)
    for text in (*(done if rotated else ()), *rotated, *stay):
        notes.note(text)
    if not rotated:
        notes.not_applicable("no stream can be rotated" if stay else "no RMS norm reads a stream")
        return graph
    return result


def rotate_all(
    graph: Graph, *, by: By, data: Mapping[str, torch.Tensor] | None, seed: int
) -> tuple[list[str], list[str]]:
    """Rotate every stream in place; what was done, and what stays and why."""
    ties = Ties(graph)
    table = analyse(graph)
    done: list[str] = []
    stay: list[str] = []
    found: list[Reach] = []
    for norm in graph.nodes:
        if norm.operator.name not in ("rms_norm", "layer_norm"):
            continue
        place = _place(norm)
        for atom in dict.fromkeys(atoms_of(table.axis(*place))):
            if any(way.atom is atom and way.values.get(place) for way in found):
                continue
            way = reach(table, place, Kind.ORTHOGONAL, atom=atom)
            if isinstance(way, Reach):
                found.append(way)
            else:
                stay.append(f"the stream that {norm.where()} reads is not rotated: {way}")
    moments = _moments(table, found, data) if by == "pca" and data is not None else {}
    for number, way in enumerate(found):
        size, count = fixed_size(way.atom.size), len(way.tensors())
        name = f"rotate/{way.tensors()[0] if count else number}"
        matrix = Dense(_matrix(by, size, seed, name, moments.get(number)))
        apply_map(graph, table, way, matrix, matrix, "rotated")
        done.append(f"a stream of {size} is rotated by {_title(by)}: {count} tensors take the matrix or its inverse")
    return [*done, *ties.join()], stay


def _check(graph: Graph, by: By, data: Mapping[str, torch.Tensor] | None) -> None:
    if by == "pca" and data is None:
        raise SutureError(Code.CALIBRATION, "the principal axes of a stream need calibration inputs", where=graph.name,
                          remedy="give data")  # fmt: skip


def _matrix(by: By, size: int, seed: int, name: str, moment: torch.Tensor | None) -> torch.Tensor:
    if by == "pca":
        return torch.eye(size, dtype=torch.float64) if moment is None else principal_axes(moment)
    return hadamard(size, seed, name) if by == "hadamard" else random_rotation(size, seed, name)


def _title(by: By) -> str:
    return {"hadamard": "a Hadamard matrix", "random": "a random matrix", "pca": "its principal axes"}[by]


def _place(norm: Node) -> Place:
    value = norm.inputs[0]
    assert value is not None
    return Place(value, value.rank - 1)


def _moments(table: AxisTable, found: list[Reach], data: Mapping[str, torch.Tensor]) -> dict[int, torch.Tensor]:
    """For each stream, by its number, the mean over positions of `y y^T`, of all that its norms write."""
    wanted: dict[Value, list[int]] = {}
    for number, way in enumerate(found):
        for node in way.nodes:
            last = Place(node.outputs[0], node.outputs[0].rank - 1)
            if node.operator.name == "rms_norm" and table.axis(*last) is way.atom:
                wanted.setdefault(node.output, []).append(number)
    sums: dict[int, torch.Tensor] = {}

    def watch(value: Value, tensor: torch.Tensor) -> None:
        for number in wanted.get(value, ()):
            rows = tensor.detach().to(torch.float64).flatten(0, -2)
            sums[number] = sums.get(number, 0) + rows.T @ rows / max(len(rows), 1)

    if not any(parameter.data.is_meta for parameter in table.graph.parameters.values()):
        with torch.no_grad():
            evaluate(table.graph, data, watch=watch)
    if not all(bool(moment.isfinite().all()) for moment in sums.values()):
        raise SutureError(
            Code.CALIBRATION, "a stream is not finite on the calibration inputs", remedy="give other data"
        )
    return sums
