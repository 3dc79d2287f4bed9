"""Post-training quantisation to integers: observers, calibration, and the pass `quantise`."""

from suture.passes.quantise.post_training import quantise

__all__ = ["quantise"]
