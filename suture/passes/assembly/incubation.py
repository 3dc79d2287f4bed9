"""Divide, train apart, assemble: the modules of a deep model are each trained inside a shallow model that stands for all the others.

Deep Incubation (Ni et al. 2023, section 3): a model is split into K modules M_1 ... M_K; a meta model of one shallow module each, trained end to
end, is frozen; module i is trained in the hybrid that has it in the place of the i-th meta module; the modules are put one behind the other, and
may be fine-tuned. What stands before the stack belongs to the first module, what stands behind it to the last. The driver is
`suture.drivers.incubating.incubate`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph, Parameter
from suture.ir.regions import Numbering, Stack, stack_at
from suture.ir.regions.cuts import ancestors
from suture.ir.splice import arrange, extract, rearrange
from suture.passes.contract import Contract
from suture.passes.registry import Notes, register


@register(contract=Contract.APPROXIMATE)
def meta_model(graph: Graph, notes: Notes, *, modules: int = 4, blocks: int = 1, at: str | None = None) -> Graph:
    """Make the shallow model in which the modules of a deep one are trained: the first blocks of each module. All tensors are copies.

    :param modules: into how many modules the stack is split
    :param blocks: how many blocks stand for a module
    :param at: the stack, by its module path; the stack of most parameters if absent
    """
    stack = stack_at(graph, at)
    parts = split(stack, modules, blocks)
    if modules * blocks == len(stack):
        notes.not_applicable(f"{stack.name} has no more than {blocks} blocks a module already")
        return graph
    result = _first_blocks(graph, at, parts, blocks)
    for number, part in enumerate(parts):
        notes.note(f"module {number}: blocks {part[0]} to {part[-1]} of {stack.name}, {blocks} in the meta model")
    return result


@dataclass(frozen=True)
class Incubation:
    """A model split into modules, and the shallow model in which each is trained.

    :param graph: the deep model; what is trained in a hybrid are its own tensors
    :param stack: the path of the stack that is split
    :param parts: the blocks of each module
    :param meta: the shallow model
    :param blocks: how many blocks of it stand for a module
    """

    graph: Graph
    stack: str
    parts: tuple[range, ...]
    meta: Graph
    blocks: int

    def hybrid(self, module: int) -> Graph:
        """One module of the deep model within the meta model, whose tensors are shared and do not train; its running statistics are copies.

        :raises SutureError: REGION, if there is no such module
        """
        self._require(module)
        result = self.graph.copy()
        stack = stack_at(result, self.stack)
        numbering = _numbering(stack)
        first, last = module == 0, module == len(self.parts) - 1
        for parameter, is_before in _outside(stack):
            if not (first if is_before else last):
                _freeze(parameter, self._met(numbering.make_room(parameter.name, self._shallow)))
        pieces: list[tuple[Graph, int]] = []
        for number, part in enumerate(self.parts):
            for k in part if number == module else part[: self.blocks]:
                piece = extract(stack.blocks[k])
                if number != module:
                    target = number * self.blocks + k - part.start
                    for parameter in piece.parameters.values():
                        _freeze(parameter, self._met(numbering.move(parameter.name, k, target)))
                pieces.append((piece, k))
        rearrange(stack, pieces)
        result.name = f"{self.graph.name}_{module}"
        return result

    def assemble(self, hybrids: Sequence[Graph]) -> Graph:
        """The deep model with the modules as they were trained, each taken out of its hybrid.

        :param hybrids: one for each module, as `hybrid` gives them
        :raises SutureError: TRAINING, if one is missing or has not the tensors that it had
        """
        if len(hybrids) != len(self.parts):
            raise SutureError(
                Code.TRAINING, f"{len(hybrids)} hybrids are given for {len(self.parts)} modules",
                where=self.graph.name, remedy="give one for each module",
            )  # fmt: skip
        result = self.graph.copy()
        stack = stack_at(result, self.stack)
        numbering = _numbering(stack)
        for parameter, is_before in _outside(stack):
            number = 0 if is_before else len(self.parts) - 1
            count = self._shallow - self.blocks + len(self.parts[number])
            _take(parameter, hybrids[number], numbering.make_room(parameter.name, count))
        for number, part in enumerate(self.parts):
            for k in part:
                for parameter in stack.blocks[k].parameters:
                    target = number * self.blocks + k - part.start
                    _take(parameter, hybrids[number], numbering.move(parameter.name, k, target))
        return result

    @property
    def _shallow(self) -> int:
        return len(self.parts) * self.blocks

    def _met(self, name: str) -> Parameter:
        found = self.meta.parameters.get(name)
        if found is None:
            raise SutureError(
                Code.TRAINING, f"the meta model has no tensor {name}", where=self.meta.name,
                remedy="give the one that meta_model made, with the same options",
            )  # fmt: skip
        return found

    def _require(self, module: int) -> None:
        if not 0 <= module < len(self.parts):
            raise SutureError(
                Code.REGION, f"there is no module {module}", where=self.graph.name, remedy=f"0 to {len(self.parts) - 1} are there"
            )  # fmt: skip


def incubation(
    graph: Graph, modules: int, *, blocks: int = 1, at: str | None = None, meta: Graph | None = None
) -> Incubation:
    """Split a model into modules that can be trained apart.

    :param modules: how many, each of as many blocks, but for the remainder, which the first ones have
    :param blocks: how many blocks of the meta model stand for a module
    :param at: the stack, by its module path; the stack of most parameters if absent
    :param meta: the meta model, trained; `meta_model` makes it if absent
    :raises SutureError: GROWTH, if there are not as many blocks; REGION, if the blocks are not numbered; SITE, if there is no such stack
    """
    stack = stack_at(graph, at)
    parts = split(stack, modules, blocks)
    _numbering(stack)
    made = meta if meta is not None else _first_blocks(graph, at, parts, blocks)
    return Incubation(graph, stack.name, parts, made, blocks)


def _first_blocks(graph: Graph, at: str | None, parts: Sequence[range], blocks: int) -> Graph:
    """A copy of the graph, tensors included, whose stack has the first blocks of each part only."""
    result = graph.copy()
    arrange(stack_at(result, at), [part[k] for part in parts for k in range(blocks)])
    for parameter in result.parameters.values():
        trains = parameter.data.requires_grad
        parameter.assign(parameter.data.detach().clone().requires_grad_(trains))
    return result


def split(stack: Stack, modules: int, blocks: int) -> tuple[range, ...]:
    """The blocks of each module.

    :raises SutureError: GROWTH, if the stack is too short
    """
    if modules < 1 or blocks < 1 or modules * blocks > len(stack):
        raise SutureError(
            Code.GROWTH, f"{len(stack)} blocks are not {modules} modules of at least {blocks}", where=stack.name,
            remedy="fewer modules, or fewer blocks for each, would be right",
        )  # fmt: skip
    size, more = divmod(len(stack), modules)
    starts = [number * size + min(number, more) for number in range(modules + 1)]
    return tuple(range(start, stop) for start, stop in itertools.pairwise(starts))


def _numbering(stack: Stack) -> Numbering:
    if stack.numbering is None:
        raise SutureError(
            Code.REGION, "the blocks are not numbered in the names of their tensors", where=stack.name,
            remedy="a stack of numbered modules with tensors of their own would be right",
        )  # fmt: skip
    return stack.numbering


def _outside(stack: Stack) -> list[tuple[Parameter, bool]]:
    """The tensors that are no block's, and whether something before or beside the stack reads them."""
    held = {parameter for block in stack.blocks for parameter in block.parameters}
    before = ancestors(stack.exit)
    return [
        (parameter, any(use.node in before for use in parameter.uses))
        for parameter in stack.graph.parameters.values()
        if parameter not in held
    ]


def _freeze(parameter: Parameter, held: Parameter) -> None:
    data = held.data.detach()
    parameter.assign(data if parameter.role == "parameter" else data.clone())
    parameter.requires_grad = False


def _take(parameter: Parameter, hybrid: Graph, name: str) -> None:
    found = hybrid.parameters.get(name)
    is_frozen = found is not None and parameter.requires_grad and not found.requires_grad
    if found is None or found.type != parameter.type or is_frozen:
        what = (
            f"{name} is frozen in {hybrid.name}"
            if is_frozen
            else f"{hybrid.name} has no tensor {name}: {parameter.type}"
        )
        raise SutureError(
            Code.TRAINING, what, where=parameter.name,
            remedy="give the hybrids in their order, with the tensors that they had",
        )  # fmt: skip
    parameter.assign(found.data)
