"""How ATen's operators read in the graph: one rule an operator, by subject. Importing this package fills the table."""

from suture.frontends.aten import arithmetic, creation, layout, network, reduction
from suture.frontends.aten.rule import RULES, AtenCall, Untranslatable

__all__ = ["RULES", "AtenCall", "Untranslatable", "arithmetic", "creation", "layout", "network", "reduction"]
