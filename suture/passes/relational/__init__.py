"""Relational graph networks: which values live on edges, unique pairs or nodes, in which order, and what is computed once for a graph's edges."""
