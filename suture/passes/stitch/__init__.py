"""Stitching: families of models joined so that one graph holds them all, and everything between them.

The pass `stitch` builds the supernet; `suture.drivers.supernet` runs, trains and takes it apart.
"""

from suture.passes.stitch.configurations import Configuration, configurations
from suture.passes.stitch.positions import Position, Windows
from suture.passes.stitch.space import Costs, Hop, Route, StitchSpace, route_cost, stitch_space
from suture.passes.stitch.surgery import stitch

__all__ = [
    "Configuration", "Costs", "Hop", "Position", "Route", "StitchSpace", "Windows", "configurations", "route_cost", "stitch", "stitch_space",
]  # fmt: skip
