"""Compiled layers in place of other libraries': with their parameters, and with the same numbers."""
