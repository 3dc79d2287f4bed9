"""An elastic network that trains: one set of weights, and a sub-network of it chosen at run time.

Each sub-network that was ever set has its code, written once from shapes alone; its weights are views of the whole network's, made as it runs. So
gradients reach the prefixes that it uses, and nothing is copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import fx, nn
from torch.func import functional_call

from suture.backends.module_tree import adopt, build_tree, place_of
from suture.backends.torch_module import to_torch
from suture.ir.graph import Graph

Slice = Callable[[torch.Tensor], torch.Tensor]


class SubNetworks(Protocol):
    """A family of nested sub-networks of one graph, each named by a hashable choice."""

    graph: Graph

    @property
    def full(self) -> Any:
        """The whole network."""
        ...

    def choice(self, amounts: Any) -> Any:
        """A choice, from what a user gives."""
        ...

    def shapes(self, choice: Any) -> Graph:
        """A sub-network without weights, its tensors named as in the whole network."""
        ...

    def slices(self, choice: Any) -> Mapping[str, Slice]:
        """By name, how those of its tensors that are smaller than the whole network's are made of these."""
        ...

    def require_outputs(self, names: Sequence[str]) -> None:
        """Raise an error if an output does not exist."""
        ...


class ElasticModule(nn.Module):
    """A module of a family of sub-networks. It begins as the whole network, in evaluation mode; `set` makes it another one.

    Its state dict is that of the whole network, whatever is set. The running statistics of norms are prefixes of the whole network's as well.
    """

    def __init__(self, family: SubNetworks) -> None:
        super().__init__()
        adopt(self, build_tree(family.graph))
        self.family = family
        self.choice = family.full
        self._programs: dict[Any, _Program] = {}
        self.eval()

    def set(self, choice: Any) -> ElasticModule:
        """Be another sub-network from now on: a choice, or the amounts to keep by name.

        :raises SutureError: ELASTIC, if there is no such one
        """
        self.choice = self.family.choice(choice)
        return self

    @contextmanager
    def at(self, choice: Any) -> Iterator[ElasticModule]:
        """Be another sub-network for a while."""
        before = self.choice
        try:
            yield self.set(choice)
        finally:
            self.choice = before

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the sub-network that is set; called as the module that was traced."""
        if self.choice not in self._programs:
            self._programs[self.choice] = _Program(self.family, self.choice)
        program = self._programs[self.choice]
        program.follow(self)
        return functional_call(program.code, program.tensors(self), args, kwargs)

    def per_output(self, choices: Mapping[str, Any], *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        """Run each task at a width of its own: for every output named, what the sub-network chosen for it gives there.

        Tasks of the same choice run once. As in slimmable multi-task networks, the graph returns one output per task.

        :raises SutureError: ELASTIC, if an output or a choice does not exist
        """
        self.family.require_outputs(list(choices))
        results: dict[str, torch.Tensor] = {}
        done: dict[Any, Sequence[torch.Tensor]] = {}
        for name, choice in choices.items():
            with self.at(choice):
                if self.choice not in done:
                    leaves = torch.utils._pytree.tree_leaves(self(*args, **kwargs))
                    done[self.choice] = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
                results[name] = done[self.choice][self.family.graph.output_names.index(name)]
        return results

    def __deepcopy__(self, memo: dict[int, Any]) -> ElasticModule:
        """A module of the same elastic network with tensors of its own, trained or not as this one's."""
        twin = ElasticModule(self.family)
        copies: dict[int, torch.Tensor] = {}
        for name, tensor in _held(self):
            copy = copies.setdefault(id(tensor), _copied(tensor))
            _assign(twin, name, copy)
        twin.choice, twin._programs = self.choice, self._programs
        for name, part in self.named_modules():
            twin.get_submodule(name).training = part.training
        memo[id(self)] = twin
        return twin


class _Program:
    """The code of a sub-network, and how its tensors are made of the whole network's."""

    def __init__(self, family: SubNetworks, choice: Any) -> None:
        shapes = family.shapes(choice)
        self.code: fx.GraphModule = to_torch(shapes)
        slices = family.slices(choice)
        self.reads = {place_of(parameter): slices.get(name) for name, parameter in shapes.parameters.items()}
        self.parts = dict(self.code.named_modules())

    def tensors(self, module: nn.Module) -> dict[str, torch.Tensor]:
        """What the code reads, by name: parts of the module's tensors."""
        held = {name: _find(module, name) for name in self.reads}
        return {name: held[name] if cut is None else cut(held[name]) for name, cut in self.reads.items()}

    def follow(self, module: nn.Module) -> None:
        """Let every part train if the module's does; one that holds no tensors follows the part around it."""
        modes = {name: part.training for name, part in module.named_modules()}
        for name, part in self.parts.items():
            around = name
            while around not in modes:
                around = around.rpartition(".")[0]
            part.training = modes[around]


def _find(module: nn.Module, name: str) -> torch.Tensor:
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    held = owner._parameters.get(leaf)
    tensor = owner._buffers[leaf] if held is None else held
    assert tensor is not None
    return tensor


def _held(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    data = tensor.detach().clone()
    return nn.Parameter(data, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else data


def _assign(module: nn.Module, name: str, tensor: torch.Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    if isinstance(tensor, nn.Parameter):
        owner._parameters[leaf] = tensor
    else:
        owner._buffers[leaf] = tensor
