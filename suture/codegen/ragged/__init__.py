"""Traversals of rows in segments: sums and extremes over each segment's rows, a segment's values at its rows, and what is computed beside."""
