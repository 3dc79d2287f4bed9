"""Which dimension of a stream holds its features."""

from __future__ import annotations

from suture.ir.algebra import atoms_of
from suture.ir.axes import AxisTable
from suture.ir.graph import Value

_IMAGE = 4  # batch, channels, height, width


def feature_dim(table: AxisTable, value: Value) -> int:
    """The dimension whose entries a layer made, the last one if several are; channels of an image if none is, else the last dimension."""
    made = [
        dim
        for dim in range(1, value.rank)
        if any(table.infos[atom].writers for atom in atoms_of(table.axis(value, dim)) if atom in table.infos)
    ]
    return made[-1] if made else 1 if value.rank == _IMAGE else value.rank - 1
