"""Re-parameterisation: linear algebra on the graph. Parallel linear operators add up, consecutive ones compose."""

from suture.passes.reparam.factors import merge_factors
from suture.passes.reparam.linear_form import LinearForm, add, compose
from suture.passes.reparam.pipeline import reparam
from suture.passes.reparam.reading import Reading, read
from suture.passes.reparam.window import Window

__all__ = ["LinearForm", "Reading", "Window", "add", "compose", "merge_factors", "read", "reparam"]
