"""Relational graph networks, compiled: what edges alone decide is found out once for each set of edges, the rest runs as generated kernels."""
