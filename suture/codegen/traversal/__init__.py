"""Pointwise chains and reductions as kernels, over one domain."""
