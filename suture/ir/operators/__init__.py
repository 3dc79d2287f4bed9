"""The operators of the graph level, by subject. Importing this package declares them all."""

from suture.ir.operators import (
    contract,
    control,
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
    "control",
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
