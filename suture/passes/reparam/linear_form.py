"""What is affine in one operand, over channels and space: one kernel, one bias, one window a dimension. Two rules act on it: `compose` and `add`.

    y[g*o, *q] = bias[g*o] + sum over i, *t of kernel[g*o, i, *t] x[g*i, *(q * stride - before + dilation * t)]

A convolution is that; a linear layer has no windows; a batch norm, a factor, a shift and the identity have a group for every channel; an
average pool has a kernel of equal numbers. Where a window reaches beyond the border it reads `border`, one number for each channel of the
operand, zero as a rule. Everything is computed in float64.

The algebra is that of Ding et al., "Diverse Branch Block" (2021), section 3.2, transforms I to VI, for any number of dimensions, groups,
strides and dilations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from suture.passes.reparam.window import Window, dilated, embedded, united
from suture.passes.rewriting import Refusal

WIDE = torch.float64

_ROUNDINGS = 8.0  # units in the last place by which a shift may miss the number that padding reads


@dataclass(frozen=True, eq=False)
class LinearForm:
    """An affine map over channels and space.

    :param kernel: `[groups * outputs, inputs, *sizes]`
    :param bias: `[groups * outputs]`; None is zero
    :param border: what windows read beyond the operand, `[groups * inputs]`; None is zero
    :param transposed: whether this is the adjoint of a convolution, with the kernel's channels the usual way round; its windows are the
        convolution's, and only what has no windows may stand before or behind it
    :param spread: whether the one channel stands for all channels, however many there are
    """

    kernel: torch.Tensor
    bias: torch.Tensor | None = None
    groups: int = 1
    windows: tuple[Window, ...] = ()
    border: torch.Tensor | None = None
    transposed: bool = False
    spread: bool = False

    @classmethod
    def diagonal(cls, scale: torch.Tensor, shift: torch.Tensor | None = None) -> LinearForm:
        """One factor and one shift for each channel `[c]`, or one for all channels `[]`."""
        if scale.ndim == 0:
            return cls(scale.reshape(1, 1), None if shift is None else shift.reshape(1), spread=True)
        return cls(scale.reshape(-1, 1), shift, len(scale))

    @property
    def inputs(self) -> int:
        """The channels of the operand."""
        return self.groups * self.kernel.shape[1]

    @property
    def outputs(self) -> int:
        """The channels of the result."""
        return self.kernel.shape[0]

    @property
    def is_pointwise(self) -> bool:
        """Whether each position is mapped by itself."""
        return not self.transposed and all(window.is_trivial for window in self.windows)

    @property
    def is_diagonal(self) -> bool:
        """Whether each element is mapped by itself."""
        return self.is_pointwise and self.kernel.shape[1] == 1 and self.outputs == self.groups

    @property
    def pads(self) -> bool:
        """Whether anything beyond the border is read."""
        return any(window.pads for window in self.windows)

    def scale(self) -> torch.Tensor:
        """The factors of a diagonal form, `[c]`."""
        return self.kernel.reshape(-1)

    def shifts(self) -> bool:
        """Whether zero is mapped to something else; on shapes alone a bias counts as that."""
        return self.bias is not None and (self.bias.is_meta or bool((self.bias != 0).any()))

    def shapes(self) -> LinearForm:
        """The form without numbers and without shift: what it costs is still known."""
        return replace(self, kernel=self.kernel.to("meta"), bias=None, border=None)

    def on(self, device: torch.device) -> LinearForm:
        """The form on a device."""
        bias, border = (None if value is None else value.to(device) for value in (self.bias, self.border))
        return replace(self, kernel=self.kernel.to(device), bias=bias, border=border)

    def scaled(self, factor: float) -> LinearForm:
        """The form times a number."""
        return replace(self, kernel=self.kernel * factor, bias=None if self.bias is None else self.bias * factor)

    def over(self, channels: int) -> LinearForm:
        """The form on so many channels: one number for all becomes one for each."""
        if not self.spread:
            return self
        bias = None if self.bias is None else self.bias.expand(channels)
        return LinearForm.diagonal(self.kernel.reshape(1).expand(channels), bias)

    def lifted(self, rank: int) -> LinearForm:
        """The form over `rank` dimensions of space, where it knows none."""
        if self.windows or not rank:
            return self
        kernel = self.kernel.reshape(*self.kernel.shape, *[1] * rank)
        return replace(self, kernel=kernel, windows=(Window(),) * rank)

    def lowered(self) -> LinearForm:
        """A pointwise form without its dimensions of space."""
        return replace(self, kernel=self.kernel.reshape(self.kernel.shape[:2]), windows=(), border=None)

    def regrouped(self, groups: int) -> LinearForm:
        """The same map in fewer groups: blocks of zeros are written out."""
        if groups == self.groups:
            return self
        many, each = self.groups // groups, self.outputs // self.groups
        inputs, sizes = self.kernel.shape[1], self.kernel.shape[2:]
        blocks = self.kernel.new_zeros((groups, many, each, many, inputs, *sizes))
        index = torch.arange(many, device=self.kernel.device)
        blocks[:, index, :, index] = self.kernel.reshape(groups, many, each, inputs, *sizes).transpose(0, 1)
        return replace(self, kernel=blocks.reshape(self.outputs, many * inputs, *sizes), groups=groups)

    def symmetric(self) -> LinearForm:
        """The form as a convolution can say it: with zeros put to its kernel where more is padded on one side than on the other."""
        windows = tuple(window.symmetric() for window in self.windows)
        if windows == self.windows:
            return self
        return replace(self, kernel=embedded(self.kernel, self.windows, windows), windows=windows)

    def __str__(self) -> str:
        sizes = "x".join(str(window.size) for window in self.windows)
        groups = f" in {self.groups} groups" if self.groups > 1 else ""
        return f"{self.inputs} -> {self.outputs}{' by ' + sizes if sizes else ''}{groups}"


def identity() -> LinearForm:
    """The identity on however many channels."""
    return LinearForm.diagonal(torch.ones((), dtype=WIDE))


def compose(first: LinearForm, second: LinearForm, *, precision: float = 0.0) -> LinearForm | Refusal:
    """`second` after `first`, as one form.

    Exact or refused: what `second` reads beyond the border of the result between the two must be what `first` would give there.

    :param precision: the rounding unit of the numbers as stored: differences of a few of it are none
    """
    first, second = _spread_out(*_together([first, second]))
    if first.spread and second.spread:
        bias = _moved_bias(first, second, precision)
        return LinearForm(first.kernel * second.kernel, bias, spread=True)
    if first.outputs != second.inputs:
        return Refusal(f"{first.outputs} channels meet {second.inputs}")
    rank = max(len(first.windows), len(second.windows))
    first, second = first.lifted(rank), second.lifted(rank)
    if len(first.windows) != len(second.windows):
        return Refusal("they run over different dimensions of space")
    if first.transposed or second.transposed:
        return _beside_transposed(first, second, precision)
    reason = _border_reason(first, second, precision)
    if reason:
        return Refusal(reason)
    windows = tuple(a.then(b) for a, b in zip(first.windows, second.windows, strict=True))
    groups, kernel = _product(first, second, windows)
    border = second.border if second.pads and _is_identity(first) else first.border
    return LinearForm(kernel, _moved_bias(first, second, precision), groups, windows, border)


def add(forms: Sequence[LinearForm]) -> LinearForm | Refusal:
    """The sum of forms of one operand, as one form."""
    forms = _together(forms)
    channels = next(((form.inputs, form.outputs) for form in forms if not form.spread), (1, 1))
    if all(form.spread for form in forms):
        return LinearForm.diagonal(_total([form.kernel.reshape(()) for form in forms]), _total_bias(forms, scalar=True))
    forms = [form.over(channels[0]) for form in forms]
    if any((form.inputs, form.outputs) != channels for form in forms):
        return Refusal("their numbers of channels differ")
    rank = max(len(form.windows) for form in forms)
    forms = [form.lifted(rank) for form in forms]
    if any(len(form.windows) != rank for form in forms) or any(form.transposed for form in forms):
        return Refusal("they run over space differently")
    if any(form.border is not None and form.pads for form in forms):
        return Refusal("one of them is padded with something else than zeros")
    found = [united(column) for column in zip(*(form.windows for form in forms), strict=True)]
    windows = tuple(window for window in found if window is not None)
    if len(windows) != rank:
        return Refusal("their strides or the positions that they read do not agree")
    groups = math.gcd(*(form.groups for form in forms))
    kernels = [embedded(form.regrouped(groups).kernel, form.windows, windows) for form in forms]
    return LinearForm(_total(kernels), _total_bias(forms), groups, windows)


def beside(forms: Sequence[LinearForm]) -> LinearForm | Refusal:
    """Forms of one operand with their results one after the other along the channels, as one form."""
    forms = [form.regrouped(1) for form in _together(forms)]
    rank = max(len(form.windows) for form in forms)
    forms = [form.lifted(rank) for form in forms]
    if any(form.transposed or form.spread or (form.border is not None and form.pads) for form in forms):
        return Refusal("they run over space differently")
    found = [united(column) for column in zip(*(form.windows for form in forms), strict=True)]
    windows = tuple(window for window in found if window is not None)
    if len(windows) != rank or any(form.inputs != forms[0].inputs for form in forms):
        return Refusal("their strides or the positions that they read do not agree")
    kernel = torch.cat([embedded(form.kernel, form.windows, windows) for form in forms])
    if all(form.bias is None for form in forms):
        return LinearForm(kernel, None, 1, windows)
    biases = [kernel.new_zeros(form.outputs) if form.bias is None else form.bias for form in forms]
    return LinearForm(kernel, torch.cat(biases), 1, windows)


def _together(forms: Sequence[LinearForm]) -> list[LinearForm]:
    """The forms on one device: constants move to where parameters are, and all to shapes where one is shapes only."""
    devices = dict.fromkeys(form.kernel.device for form in forms)
    if len(devices) == 1:
        return list(forms)
    meta = [device for device in devices if device.type == "meta"]
    device = (meta or [device for device in devices if device.type != "cpu"])[0]
    return [form.on(device) for form in forms]


def _spread_out(first: LinearForm, second: LinearForm) -> tuple[LinearForm, LinearForm]:
    if first.spread and second.spread:
        return first, second
    return first.over(second.inputs), second.over(first.outputs)


def _is_identity(form: LinearForm) -> bool:
    """Whether a form only pads, with zeros or not at all."""
    if form.bias is not None or form.kernel.is_meta or form.kernel.shape[1] != 1 or form.outputs != form.groups:
        return False
    return all(w.size == 1 and w.stride == 1 for w in form.windows) and bool((form.kernel == 1).all())


def _border_reason(first: LinearForm, second: LinearForm, precision: float) -> str:
    """Why the padding between two forms stands in the way, if it does."""
    padded = [(a, b) for a, b in zip(first.windows, second.windows, strict=True) if b.pads]
    if not padded:
        return ""
    if any(window.size > 1 for window, _ in padded):
        return "what is padded between the two is the result of a window"
    if first.border is not None:
        return "both are padded, with different numbers"
    if _is_identity(first) and not first.pads:
        return ""
    if first.bias is None and second.border is None:
        return ""
    if first.kernel.is_meta:
        return "whether the shift equals what pads it is not known without numbers"
    shift = first.kernel.new_zeros(first.outputs) if first.bias is None else first.bias
    wanted = torch.zeros_like(shift) if second.border is None else second.border
    allowed = precision * _ROUNDINGS * (first.kernel.abs().flatten(1).sum(1) + wanted.abs())
    if bool(((shift - wanted).abs() <= allowed).all()):
        return ""
    with_what = "zeros" if second.border is None else "other numbers"
    return f"pads with {with_what} that the shift would have to reach"


def _beside_transposed(first: LinearForm, second: LinearForm, precision: float) -> LinearForm | Refusal:
    """Something pointwise before or behind the adjoint of a convolution, which keeps its geometry."""
    own, other = (first, second) if first.transposed else (second, first)
    if not other.is_pointwise:
        return Refusal("a transposed convolution takes in only what maps each position by itself")
    if own is second and first.shifts() and not all(window.is_trivial for window in own.windows):
        return Refusal("the shift would not reach every output alike")
    groups, kernel = _product(
        replace(first, windows=(Window(),) * len(first.windows)) if own is second else first,
        replace(second, windows=(Window(),) * len(second.windows)) if own is first else second,
        own.windows,
    )
    return LinearForm(kernel, _moved_bias(first, second, precision), groups, own.windows, transposed=True)


def _moved_bias(first: LinearForm, second: LinearForm, precision: float) -> torch.Tensor | None:
    """The bias of `second` after `first`; what is left of numbers that cancel but for their rounding is zero."""
    if first.bias is None:
        return second.bias
    split = second.kernel.reshape(second.groups, -1, second.kernel.shape[1], *second.kernel.shape[2:])
    shift = first.bias.reshape(second.groups, 1, -1, *[1] * (second.kernel.ndim - 2))
    moved = (split * shift).flatten(2).sum(2).reshape(-1)
    if second.bias is None:
        return moved
    total, rounding = second.bias + moved, precision * _ROUNDINGS * (second.bias.abs() + moved.abs())
    return torch.where(total.abs() <= rounding, torch.zeros_like(total), total)


def _product(first: LinearForm, second: LinearForm, windows: Sequence[Window]) -> tuple[int, torch.Tensor]:
    """The groups and the kernel of `second` after `first`."""
    if second.is_diagonal:
        return first.groups, first.kernel * second.scale().reshape(-1, *[1] * (first.kernel.ndim - 1))
    if first.is_diagonal:
        split = second.kernel.reshape(second.groups, -1, *second.kernel.shape[1:])
        factors = first.scale().reshape(second.groups, 1, -1, *[1] * (second.kernel.ndim - 2))
        return second.groups, (split * factors).reshape(second.kernel.shape)
    steps = [1] * len(windows), [1] * len(windows)
    if not first.transposed and not second.transposed:
        for k, (a, b, both) in enumerate(zip(first.windows, second.windows, windows, strict=True)):
            steps[0][k] = a.dilation // both.dilation if a.size > 1 else 1
            steps[1][k] = b.dilation * a.stride // both.dilation if b.size > 1 else 1
    groups = math.gcd(first.groups, second.groups)
    inner, outer = dilated(first.kernel, steps[0]), dilated(second.kernel, steps[1])
    if first.kernel.shape[1] == 1 and first.outputs == first.groups:
        return second.groups, _by_channel(inner, outer, second.groups)
    if second.kernel.shape[1] == 1 and second.outputs == second.groups:
        return first.groups, _convolved(inner, outer, second.groups)
    inner, outer = dilated(first.regrouped(groups).kernel, steps[0]), dilated(second.regrouped(groups).kernel, steps[1])
    return groups, _convolved(inner, outer, groups)


def _by_channel(inner: torch.Tensor, outer: torch.Tensor, groups: int) -> torch.Tensor:
    """An inner kernel `[c, 1, *u]` of one window a channel under an outer one `[g*o, c/g, *v]`: `[g*o, c/g, *(u+v-1)]`."""
    each = inner.reshape(groups, 1, -1, *inner.shape[2:]).expand(-1, outer.shape[0] // groups, *[-1] * (inner.ndim - 1))
    each = each.reshape(*outer.shape[:2], *inner.shape[2:])
    if all(size == 1 for size in inner.shape[2:]) or all(size == 1 for size in outer.shape[2:]):
        return each * outer
    rows = math.prod(outer.shape[:2])
    full = _convolved(each.reshape(rows, 1, *inner.shape[2:]), outer.reshape(rows, 1, *outer.shape[2:]), rows)
    return full.reshape(*outer.shape[:2], *full.shape[2:])


def _convolved(inner: torch.Tensor, outer: torch.Tensor, groups: int) -> torch.Tensor:
    """The kernel `[g*o, i, *(u+v-1)]` of `outer` `[g*o, m, *v]` after `inner` `[g*m, i, *u]`: the full convolution of the two."""
    sizes = outer.shape[2:]
    if not sizes or all(size == 1 for size in (*sizes, *inner.shape[2:])):
        left = outer.reshape(groups, -1, outer.shape[1])
        right = inner.reshape(groups, outer.shape[1], -1)
        return (left @ right).reshape(outer.shape[0], *inner.shape[1:])
    function = (F.conv1d, F.conv2d, F.conv3d)[len(sizes) - 1]
    turned = outer.flip(list(range(2, outer.ndim)))
    full = function(inner.transpose(0, 1), turned, padding=tuple(size - 1 for size in sizes), groups=groups)
    return full.transpose(0, 1)


def _total(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    total = tensors[0]
    for tensor in tensors[1:]:
        total = total + tensor
    return total


def _total_bias(forms: Sequence[LinearForm], *, scalar: bool = False) -> torch.Tensor | None:
    biases = [form.bias.reshape(()) if scalar else form.bias for form in forms if form.bias is not None]
    return _total(biases) if biases else None
