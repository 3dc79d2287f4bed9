"""Convolutions as kernels: products over windows, and direct ones."""
