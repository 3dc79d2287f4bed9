"""Operators written out in simpler ones before they are lowered."""
