"""Matrices of low rank: decompositions, the choice of ranks, and layers that become products of smaller ones."""
