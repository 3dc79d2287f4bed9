"""Matrix products as kernels."""
