"""repq: transformers in integers of a few bits (RepQ-ViT, Li et al. 2023; RepQuant, Li et al. 2024)."""

from suture.passes.repq.low_bits import repq

__all__ = ["repq"]
