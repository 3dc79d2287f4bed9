"""Module paths: dotted names such as `model.layers.3`, each below the shorter ones it begins with; the empty path is the model itself."""

from __future__ import annotations

from collections.abc import Iterable


def is_below(path: str, ancestor: str) -> bool:
    """Whether a module path is another, or lies below it."""
    return not ancestor or path == ancestor or path.startswith(ancestor + ".")


def common_path(paths: Iterable[str]) -> str:
    """The deepest module path that holds all of some paths."""
    rows = [path.split(".") for path in paths]
    if not rows:
        return ""
    shared: list[str] = []
    for parts in zip(*rows, strict=False):
        if any(part != parts[0] for part in parts):
            break
        shared.append(parts[0])
    return ".".join(shared)
