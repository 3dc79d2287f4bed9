"""Regions: connected parts of a graph, what flows through them, and where they repeat.

A region is found by a module path (`at_path`), between two values (`between`), between the cut values of the graph (`segments`), or as a block of
a stack (`stacks`). What is done with one stands in `suture.ir.splice`.
"""

from suture.ir.regions.cuts import between, cuts, segments
from suture.ir.regions.isomorphism import Correspondence, correspondence, difference
from suture.ir.regions.numbering import Numbering
from suture.ir.regions.region import ModuleTree, Region, at_path, module_tree
from suture.ir.regions.stacks import Stack, stack_at, stacks

__all__ = [
    "Correspondence", "ModuleTree", "Numbering", "Region", "Stack", "at_path", "between", "correspondence", "cuts", "difference", "module_tree",
    "segments", "stack_at", "stacks",
]  # fmt: skip
