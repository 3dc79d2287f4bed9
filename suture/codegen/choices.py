"""What a search chose, and the cache folder in which it is kept."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass

from suture.codegen.schedule import Schedule, from_json, show, to_json
from suture.ir.errors import SutureError
from suture.ir.files import cache_folder, replacing


@dataclass(frozen=True)
class Choice:
    """What was chosen for a group.

    :param seconds: what each candidate took, the default first; nothing where the choice was known
    """

    key: str
    schedule: Schedule
    seconds: tuple[float, ...] = ()

    @property
    def speedup(self) -> float:
        """How many times as fast as the default it is."""
        return self.seconds[0] / min(self.seconds) if self.seconds else 1.0

    def __str__(self) -> str:
        how = (
            f"{self.speedup:.2f} times the default's speed, of {len(self.seconds)}" if self.seconds else "known before"
        )
        return f"{self.key}: {show(self.schedule)} ({how})"


def read_choice(mark: str) -> Schedule | None:
    """What was chosen before; None if that is nothing, or cannot be read."""
    try:
        return from_json(json.loads((cache_folder("schedules") / f"{mark}.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_choice(mark: str, schedule: Schedule) -> None:
    """Keep a choice; a cache that cannot be written costs time the next time, no more."""
    folder = cache_folder("schedules")
    with contextlib.suppress(OSError, SutureError):
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / f"{mark}.json") as path:
            path.write_text(json.dumps(to_json(schedule)) + "\n", encoding="utf-8")
