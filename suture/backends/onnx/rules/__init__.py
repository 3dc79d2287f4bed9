"""The rules, by subject. Importing this package fills the emitter's table."""

from suture.backends.onnx.rules import (
    activations,
    arithmetic,
    attention,
    contract,
    control,
    indexing,
    layout,
    normalise,
    opaque,
    recurrent,
    reduce,
    source,
    spatial,
)

__all__ = [
    "activations",
    "arithmetic",
    "attention",
    "contract",
    "control",
    "indexing",
    "layout",
    "normalise",
    "opaque",
    "recurrent",
    "reduce",
    "source",
    "spatial",
]
