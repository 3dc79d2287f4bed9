"""Linear maps on atoms: maps of dimensions against numpy's Kronecker products and selections, and cuts as one instance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import suture
from suture.ir.algebra import Algebra, Atom, Axis, chain, times
from suture.ir.axes import Place
from suture.passes.axis_map import AxisMap, apply
from suture.passes.linear_maps import Dense, Gather, LinearMap, Pad, composed, map_dimension, mapped_size


def matrix_of(linear: LinearMap | None, size: int) -> np.ndarray:
    """A map as a matrix, by definition."""
    match linear:
        case None:
            return np.eye(size)
        case Dense(matrix):
            return matrix.numpy()
        case Gather(index, scale):
            made = np.zeros((len(index), size))
            made[np.arange(len(index)), index.numpy()] = 1.0 if scale is None else scale.numpy()
            return made
        case Pad(count=count, fill=fill):
            return np.concatenate([np.eye(size), np.full((count, size), 1 / size if fill == "mean" else 0.0)])


def block(parts: list[np.ndarray]) -> np.ndarray:
    rows, columns = sum(p.shape[0] for p in parts), sum(p.shape[1] for p in parts)
    made, r, c = np.zeros((rows, columns)), 0, 0
    for part in parts:
        made[r : r + part.shape[0], c : c + part.shape[1]] = part
        r, c = r + part.shape[0], c + part.shape[1]
    return made


@st.composite
def mapped_axes(draw: st.DrawFn) -> tuple[Axis, dict[Atom, LinearMap], np.ndarray]:
    """An axis over few atoms, maps for some of them, and the whole dimension's matrix, built from Kronecker products and blocks."""
    algebra = Algebra()
    atoms = [algebra.atom(draw(st.integers(2, 3))) for _ in range(3)]
    maps: dict[Atom, LinearMap] = {}
    for atom in atoms:
        size = atom.size
        assert isinstance(size, int)
        after = draw(st.integers(1, 5))
        seed = torch.Generator().manual_seed(draw(st.integers(0, 99)))
        index = torch.randint(0, size, (after,), generator=seed)
        made: list[LinearMap | None] = [
            None, Gather(index), Gather(index, torch.rand(after, generator=seed, dtype=torch.float64)),
            Dense(torch.randn(after, size, generator=seed, dtype=torch.float64)), Pad(size, after, 0.0), Pad(size, after, "mean"),
        ]  # fmt: skip
        chosen = made[draw(st.integers(0, 5))]
        if chosen is not None:
            maps[atom] = chosen

    def build(depth: int) -> tuple[Axis, np.ndarray]:
        if depth == 0 or draw(st.booleans()):
            atom = draw(st.sampled_from(atoms))
            assert isinstance(atom.size, int)
            return atom, matrix_of(maps.get(atom), atom.size)
        axes, matrices = zip(*[build(depth - 1) for _ in range(2)], strict=True)
        if draw(st.booleans()):
            return times(axes), np.kron(*matrices)
        return chain(axes), block(list(matrices))

    axis, matrix = build(2)
    return axis, maps, matrix


@settings(max_examples=80)
@given(case=mapped_axes())
def test_a_dimension_is_mapped_by_the_products_and_blocks_of_its_atoms_maps(
    case: tuple[Axis, dict[Atom, LinearMap], np.ndarray],
) -> None:
    axis, maps, matrix = case
    data = torch.randn(2, matrix.shape[1], 3, dtype=torch.float64)
    received = map_dimension(data, 1, axis, maps)
    np.testing.assert_allclose(received.numpy(), np.einsum("ij,bjc->bic", matrix, data.numpy()), atol=1e-12)
    assert mapped_size(axis, {atom: m.size for atom, m in maps.items()}) == matrix.shape[0]
    gathers = {atom: m for atom, m in maps.items() if isinstance(m, Gather)}
    if len(gathers) == len(maps):
        whole = composed(axis, gathers)
        np.testing.assert_allclose(matrix_of(whole, matrix.shape[1]), matrix, atol=1e-12)


def test_shapes_alone_can_be_mapped() -> None:
    atom = Algebra().atom(4)
    for linear in (Gather(torch.tensor([0, 2])), Dense(torch.ones(2, 4)), Pad(4, 3, "noise"), Pad(4, 1, "mean")):
        data = torch.empty(4, 5, device="meta")
        assert map_dimension(data, 0, atom, {atom: linear}).shape == (linear.size, 5)


def test_integers_are_chosen_and_never_averaged() -> None:
    atom = Algebra().atom(4)
    averaging = Dense(torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.25, 0.75]]))
    data = torch.tensor([[7, 1, 2, 9]])
    assert map_dimension(data, 1, atom, {atom: averaging}).tolist() == [[7, 9]]
    assert map_dimension(data > 5, 1, atom, {atom: Gather(torch.tensor([3, 0]), torch.tensor([0.5, 0.5]))}).all()


def test_apply_changes_types_attributes_and_parameters_and_leaves_the_graph() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 1), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3, groups=8), torch.nn.Conv2d(8, 5, 1)
    )
    x = torch.randn(2, 3, 6, 6)
    graph = suture.trace(net.eval(), (x,))
    text = str(graph)
    table = graph.axes()
    info = next(info for info in table.free() if info.size == 8)
    index = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 0, 1])
    shares = (1 / torch.bincount(index).double())[index]
    reads = {info.atom: frozenset({Place(graph.parameters["3.weight"], 1)})}
    wide = apply(graph, table, {info.atom: AxisMap(Gather(index), Gather(index, shares))}, reads)
    assert str(graph) == text
    assert wide.parameters["0.weight"].shape == (10, 3, 1, 1) and wide.parameters["2.weight"].shape == (10, 1, 3, 3)
    assert next(node for node in wide.nodes if node.path == "2").attributes["groups"] == 10
    torch.testing.assert_close(wide.parameters["3.weight"].data[:, 8:], net[3].weight[:, :2] / 2)
    torch.testing.assert_close(suture.evaluate(wide, [x])[0], net(x), rtol=1e-5, atol=1e-6)
    assert wide.parameters["3.bias"].data is graph.parameters["3.bias"].data


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_types_are_mapped_in_wider_ones(dtype: torch.dtype) -> None:
    atom = Algebra().atom(300)
    data = torch.rand(300, dtype=torch.float64).to(dtype)
    mean = map_dimension(data, 0, atom, {atom: Dense(torch.full((1, 300), 1 / 300, dtype=torch.float64))})
    assert mean.dtype == dtype
    assert abs(float(mean) - float(data.double().mean())) < float(torch.finfo(dtype).eps)
