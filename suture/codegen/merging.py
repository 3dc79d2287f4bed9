"""A kernel's buffers with as few dimensions as its indices need.

Where neighbouring dimensions of a value are only ever addressed by the digits of one number (rows of a batch of matrices that one matrix multiplies),
they are one dimension of the buffer, and the number is its index: no division is left.
"""

from __future__ import annotations

from collections.abc import Sequence

from suture.codegen.builder import KernelBuilder
from suture.codegen.step import Context
from suture.ir.graph import Node, Value
from suture.ir.kernel import Apply, Buffer, Expression, Load, parts
from suture.ir.sizes import Dim, product


class MergingBuilder(KernelBuilder):
    """Builds a kernel whose arguments have merged dimensions; how is settled by the first element of a value that is asked for."""

    def __init__(self, context: Context, nodes: Sequence[Node], name: str) -> None:
        super().__init__(context, nodes, name)
        self._runs: dict[Value, list[tuple[int, int]]] = {}

    def place(self, value: Value, index: Sequence[Expression]) -> Load:
        """Where an element of a value that is in memory lies."""
        order = self.context.order(value)
        at, shape = [index[dim] for dim in order], [value.shape[dim] for dim in order]
        if value not in self._runs:
            self._runs[value] = self._merged(at, shape)
            sizes = tuple(self.size(product(shape[a:b])) for a, b in self._runs[value])
            bound = self._bounds.get(value)
            self._buffers[value] = Buffer(f"x{len(self._buffers)}", value.dtype, sizes, bound=bound)
        runs = self._runs[value]
        return Load(self._buffers[value], tuple(self._number(at[a:b], shape[a:b]) for a, b in runs))

    def _merged(self, index: Sequence[Expression], shape: Sequence[Dim]) -> list[tuple[int, int]]:
        runs: list[tuple[int, int]] = []
        for dim in range(len(shape)):
            if runs:
                start, stop = runs[-1]
                apart = _divisions([self._number(index[start:stop], shape[start:stop]), index[dim]])
                together = _divisions([self._number(index[start : dim + 1], shape[start : dim + 1])])
                if together < apart or shape[dim] == 1:
                    runs[-1] = (start, dim + 1)
                    continue
            runs.append((dim, dim + 1))
        return runs

    def _number(self, digits: Sequence[Expression], shape: Sequence[Dim]) -> Expression:
        return digits[0] if len(digits) == 1 else self.indices.horner(digits, [self.size(dim) for dim in shape])


def _divisions(index: Sequence[Expression]) -> int:
    return sum(isinstance(part, Apply) and part.function in ("//", "%") for at in index for part in parts(at))
