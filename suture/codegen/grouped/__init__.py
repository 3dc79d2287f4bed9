"""Products by type as kernels: rows that come sorted, each segment of them with a matrix of its own."""
