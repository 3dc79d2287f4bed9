"""A text that is on every machine with Python: the sources of its standard library, a sequence of characters."""

from __future__ import annotations

import hashlib
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import torch

_FIRST, _LAST = 32, 126  # printable ASCII; a line's end is one more character, anything else another
_SIZE = 3_000_000
_HELD_OUT = 200_000


@dataclass(frozen=True)
class Text:
    """Characters as numbers: what is trained on, what is held out, and how many different ones there are."""

    train: torch.Tensor
    held_out: torch.Tensor
    vocabulary: int
    digest: str

    def batch(self, step: int, size: int, context: int, *, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Windows for one step, the same for every model: inputs and the characters that follow, each `[size, context]`."""
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        start = torch.randint(0, len(self.train) - context - 1, (size, 1), generator=generator)
        window = self.train[start + torch.arange(context + 1)]
        return window[:, :-1], window[:, 1:]

    def evaluation(self, count: int, context: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Windows spread evenly over what is held out, each `[count, context]`."""
        start = torch.linspace(0, len(self.held_out) - context - 2, count).long()[:, None]
        window = self.held_out[start + torch.arange(context + 1)]
        return window[:, :-1], window[:, 1:]


def standard_library(size: int = _SIZE) -> Text:
    """The modules at the top of the standard library, in the order of their names; the last part is held out."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    raw = b"".join(path.read_bytes() for path in sorted(folder.glob("*.py")))[:size]
    codes = torch.frombuffer(bytearray(raw), dtype=torch.uint8).to(torch.int64)
    printable = (codes >= _FIRST) & (codes <= _LAST)
    numbers = torch.where(printable, codes - _FIRST + 2, (codes == ord("\n")).long())
    digest = hashlib.sha256(raw).hexdigest()[:16]
    return Text(numbers[:-_HELD_OUT], numbers[-_HELD_OUT:], _LAST - _FIRST + 3, digest)
