"""Pooling and interpolation as kernels."""
