"""Sharing of weights between blocks: loops with adapters, stages, and the way back."""
