"""How a linear operator reads one spatial dimension, and what becomes of that when operators stand behind or beside one another.

Result `o` reads the positions `o * stride - before + dilation * t` for `t < size`; `before` and `after` positions of padding stand around the
operand. So `floor((n + slack) / stride) + 1` results come of `n` positions, with `slack = before + after - dilation * (size - 1) - 1`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class Window:
    """One dimension's window: how many positions it reads, which, and how it moves."""

    size: int = 1
    stride: int = 1
    dilation: int = 1
    before: int = 0
    after: int = 0

    @property
    def reach(self) -> int:
        """From the first position read to the last."""
        return self.dilation * (self.size - 1)

    @property
    def slack(self) -> int:
        """What the number of results depends on, beside stride and size."""
        return self.before + self.after - self.reach - 1

    @property
    def pads(self) -> bool:
        """Whether anything beyond the operand's border is read."""
        return bool(self.before or self.after)

    @property
    def is_trivial(self) -> bool:
        """Whether each result reads its own position."""
        return self.size == 1 and self.stride == 1 and not self.pads

    def then(self, second: Window) -> Window:
        """The window of `second` over the results of this one."""
        steps = [self.dilation] * (self.size > 1) + [second.dilation * self.stride] * (second.size > 1)
        dilation = math.gcd(*steps) or 1
        size = (self.reach + second.reach * self.stride) // dilation + 1
        before, after = (a + b * self.stride for a, b in ((self.before, second.before), (self.after, second.after)))
        return Window(size, self.stride * second.stride, dilation, before, after)

    def symmetric(self) -> Window:
        """The same window with zeros put to its kernel until as much is padded before as after, where that can be; else itself."""
        missing = abs(self.before - self.after)
        if not missing or missing % self.dilation:
            return self
        most = max(self.before, self.after)
        return replace(self, size=self.size + missing // self.dilation, before=most, after=most)


def united(windows: Sequence[Window]) -> Window | None:
    """The smallest window that holds all of them, symmetric where it can be; None if they move differently.

    Windows of one stride whose numbers of results differ for some operand cannot be united either; with a stride they may differ and still
    agree on the operand at hand, so the first that pads evenly decides, and the type of the result tells.
    """
    stride = windows[0].stride
    if any(window.stride != stride for window in windows):
        return None
    if stride == 1 and len({window.slack for window in windows}) > 1:
        return None
    first = min(-window.before for window in windows)
    last = max(window.reach - window.before for window in windows)
    steps = [window.dilation for window in windows if window.size > 1]
    dilation = math.gcd(*steps, *(-window.before - first for window in windows)) or 1
    size = (last - first) // dilation + 1
    found: list[Window] = []
    for window in windows:
        after = window.slack + first + dilation * (size - 1) + 1
        found.append(Window(size, stride, dilation, -first, after))
    even = [window for window in found if window.before == window.after]
    possible = [window for window in found if window.after >= 0]
    if not even and not possible:
        return None
    return even[0] if even else possible[0].symmetric()


def embedded(kernel: torch.Tensor, windows: Sequence[Window], targets: Sequence[Window]) -> torch.Tensor:
    """A kernel `[o, i, *sizes]` written into larger windows that read the same positions; zeros elsewhere."""
    if tuple(windows) == tuple(targets):
        return kernel
    places = [slice(None), slice(None)]
    for window, target in zip(windows, targets, strict=True):
        start, step = (target.before - window.before) // target.dilation, window.dilation // target.dilation
        places.append(slice(start, start + step * (window.size - 1) + 1, step if window.size > 1 else 1))
    larger = kernel.new_zeros((*kernel.shape[:2], *(target.size for target in targets)))
    larger[tuple(places)] = kernel
    return larger


def dilated(kernel: torch.Tensor, steps: Sequence[int]) -> torch.Tensor:
    """A kernel `[o, i, *sizes]` with its entries `steps` apart and zeros between."""
    if all(step == 1 for step in steps):
        return kernel
    sizes = [step * (size - 1) + 1 for step, size in zip(steps, kernel.shape[2:], strict=True)]
    wider = kernel.new_zeros((*kernel.shape[:2], *sizes))
    wider[(slice(None), slice(None), *(slice(None, None, step) for step in steps))] = kernel
    return wider
