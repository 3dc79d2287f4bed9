"""Fusion: templates found in a graph and written as others, and the way back."""
