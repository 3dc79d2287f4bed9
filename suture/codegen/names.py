"""Names for C, C++ and torch, made of names that people gave."""

from __future__ import annotations

import re

_FILES = """
    arena assert complex ctype errno example fenv float inttypes iso646 limits locale math omp prelude safetensors setjmp signal stdalign stdarg
    stdatomic stdbool stddef stdint stdio stdlib stdnoreturn string tgmath threads time uchar unistd wchar wctype
"""
_TAKEN = frozenset(_FILES.split())  # headers: a file of the same name would stand in their way


def c_name(text: str) -> str:
    """What files and C names may begin with, an underscore behind it."""
    made = re.sub(r"\W+", "_", text, flags=re.ASCII).strip("_")
    if not made or made[0].isdigit() or made.startswith("k_"):
        made = f"net_{made}" if made else "net"
    return f"{made}_net" if made.lower() in _TAKEN else made
