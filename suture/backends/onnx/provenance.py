"""Where a file comes from: Suture's version, the source, and what was done to the model, as the file's metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from suture.ir.graph import Graph


def version() -> str:
    """The installed version of Suture; `unknown` in a source tree that was not installed."""
    try:
        return metadata.version("suture")
    except metadata.PackageNotFoundError:
        return "unknown"


def provenance(graph: Graph) -> dict[str, str]:
    """The metadata of an exported graph. It holds no time and no path of ours: equal graphs give equal files."""
    passes = [
        {
            "name": record.name,
            "options": _plain(record.options),
            "contract": record.contract,
            "outcome": record.outcome,
            "notes": list(record.notes),
            "deviation": record.deviation,
        }
        for record in graph.history
    ]
    found = {
        "suture.version": version(),
        "suture.source": graph.source,
        "suture.passes": json.dumps(passes, sort_keys=True),
    }
    return {key: text for key, text in found.items() if text}


def _plain(value: Any) -> Any:
    """What JSON can say; anything else as its text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)
