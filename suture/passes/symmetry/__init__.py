"""Symmetries: changes of basis along one axis that leave the network's function as it is."""
