"""Attention as kernels, tile by tile of keys."""
