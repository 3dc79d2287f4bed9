"""The operators of the graph level, by subject. Importing this package declares them all."""

from suture.ir.operators import (
    contract,
    control,
    elementwise,
    experts,
    fused,
    layout,
    lookup,
    normalise,
    parts,
    quantise,
    quantise_log,
    recurrent,
    reduce,
    segments,
    source,
    spatial,
)

__all__ = [
    "contract",
    "control",
    "elementwise",
    "experts",
    "fused",
    "layout",
    "lookup",
    "normalise",
    "parts",
    "quantise",
    "quantise_log",
    "recurrent",
    "reduce",
    "segments",
    "source",
    "spatial",
]
