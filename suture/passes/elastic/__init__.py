"""Elastic networks: nested sub-networks along widths and depths that share one set of weights, trained together, extracted without search.

`suture.drivers.elastic` adds the module that trains them.
"""

from suture.passes.elastic.dimensions import Choice, Depth, Width, evenly
from suture.passes.elastic.network import Cost, Family
from suture.passes.elastic.training import Branches, accumulate, distillation, sandwich

__all__ = ["Branches", "Choice", "Cost", "Depth", "Family", "Width", "accumulate", "distillation", "evenly", "sandwich"]
