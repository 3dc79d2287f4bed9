"""What every convolution's kernels have in common: where the input is read, where results go, and the pointwise nodes behind the sums."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from suture.codegen.builder import KernelBuilder
from suture.codegen.convolution.packing import pack_taps
from suture.codegen.convolution.sources import result, source
from suture.codegen.convolution.weights import by_tap
from suture.codegen.convolution.windows import first, index_of, windows_of
from suture.codegen.groups import Group
from suture.codegen.schedule import ConvolutionSchedule
from suture.codegen.step import Context, KernelStep
from suture.ir.graph import Node, Parameter, Value
from suture.ir.kernel import Expression, Let, Name, Statement


class ConvolutionWriter(ABC):
    """Writes the kernels of one convolution.

    :param name: what the kernel is called
    """

    name: str

    def __init__(self, group: Group, context: Context, schedule: ConvolutionSchedule) -> None:
        assert group.anchor is not None
        self.group, self.context, self.schedule = group, context, schedule
        self.node: Node = group.anchor
        self.windows = windows_of(self.node)
        self.packing: list[
            KernelStep
        ] = []  # what brings computed weights into the order in which the kernel reads them
        self.settle()
        self.origin, self._before = self.reads()
        self._targets = {value: self.place_of(value) for value in group.outputs}
        self.builder = KernelBuilder(context, group.nodes, self.name)
        self.known: dict[tuple[Value, tuple[Expression, ...]], Expression] = {}  # what the block has loaded ahead

    def lower(self) -> list[KernelStep]:
        """The kernels: copies where the input lies otherwise, the convolution, copies where results shall lie otherwise."""
        after = [step for _, steps in self._targets.values() for step in steps]
        return [*self.packing, *self._before, self.kernel(), *after]

    @abstractmethod
    def settle(self) -> None:
        """Choose tiles, and make the weights ready: ahead where they are parameters, by a kernel of `packing` where they are computed."""

    @abstractmethod
    def kernel(self) -> KernelStep:
        """The convolution itself."""

    def reads(self) -> tuple[Value, list[KernelStep]]:
        """What the kernel reads for its input, and the kernels that make that."""
        return source(first(self.node), self.context, self.group.nodes)

    def place_of(self, value: Value) -> tuple[Value, list[KernelStep]]:
        """Where the kernel stores a value of the group, and the kernels that bring it to its place from there."""
        return result(value, self.context)

    def taps_of(self) -> Value:
        """The weights of a depthwise convolution as `[taps, channels]`."""
        if isinstance(self.node.inputs[1], Parameter):
            return by_tap(self.node, self.context)
        packed, step = pack_taps(self.node, self.context)
        self.packing.append(step)
        return packed

    def behind(self, total: Expression, channel: Expression, index: Sequence[Expression]) -> list[Statement]:
        """The bias and the pointwise nodes behind, on a sum; and the stores.

        :param channel: the output channel
        :param index: the element of the result that the sum is
        """
        lane = self.builder.lane()
        for (value, at), expression in self.known.items():
            lane.know(value, at, expression)
        bias = self.node.inputs[2] if len(self.node.inputs) > 2 else None
        if bias is not None:
            total = total + lane.value(bias, index_of(bias, (channel,)))
        known = Name(self.builder.fresh(), total.dtype)
        lane.statements.append(Let(known, total))
        lane.know(self.node.output, index, known)
        for value, (target, _) in self._targets.items():
            lane.store(target, index, lane.value(value, index))
        return lane.statements


__all__ = ["ConvolutionWriter"]
