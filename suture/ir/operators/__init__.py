"""The operators of the graph level, by subject. Importing this package declares them all."""

from suture.ir.operators import (
    contract,
    elementwise,
    layout,
    lookup,
    normalise,
    parts,
    recurrent,
    reduce,
    source,
    spatial,
)

__all__ = [
    "contract",
    "elementwise",
    "layout",
    "lookup",
    "normalise",
    "parts",
    "recurrent",
    "reduce",
    "source",
    "spatial",
]
