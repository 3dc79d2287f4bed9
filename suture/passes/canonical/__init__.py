"""Canonical form: what can be written in several ways is written in one, in as few nodes as it takes."""
