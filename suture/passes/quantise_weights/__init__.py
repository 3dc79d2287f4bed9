"""quantise_weights: weights become integers of a few bits, activations stay real."""

from suture.passes.quantise_weights.weight_only import quantise_weights

__all__ = ["quantise_weights"]
