"""Which input dimensions vary: the user's names for them, torch's marks, and what torch then calls them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, TypeAlias

import torch
from torch import nn

from suture.ir.errors import Code, SutureError, nearest
from suture.ir.sizes import Dim, symbol

Dynamic: TypeAlias = "Mapping[str, Any] | Sequence[Any] | None"


@dataclass
class Leaf:
    """One tensor among the (nested) arguments."""

    name: str  # underscored, as the graph's input will be called
    dotted: str
    tensor: torch.Tensor
    dims: dict[int, str]


class Inputs:
    """A module's arguments, by the names that `forward` gives them, with the tensors among them and their varying dimensions."""

    def __init__(self, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], dynamic: Dynamic) -> None:
        import torch.utils._pytree as pytree

        register_dataclasses((args, kwargs))
        # Every argument an object of its own, so that a tensor passed twice is two inputs.
        self.args, self.kwargs = pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, (tuple(args), dict(kwargs)))
        signature = inspect.signature(module.forward)
        try:
            bound = signature.bind(*self.args, **self.kwargs)
        except TypeError as error:
            raise SutureError(
                Code.MODULE,
                f"{type(module).__name__}.forward does not take these arguments: {error}",
                remedy=f"it takes {signature}",
            ) from None
        self.arguments: dict[str, Any] = {}
        for name, argument in bound.arguments.items():
            starred = signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
            self.arguments.update(argument if starred else {name: argument})
        self.signature = _without_stars(signature, self.arguments)
        self.leaves: list[Leaf] = []
        for name, argument in self.arguments.items():
            self._collect(name, name, argument)
        self._mark(dynamic)

    def names(self) -> tuple[str, ...]:
        """The arguments in call order, those by keyword last."""
        names: list[str] = []
        for name, argument in self.arguments.items():
            starred = self.signature.parameters[name].kind is inspect.Parameter.VAR_POSITIONAL
            names += [f"{name}_{k}" for k in range(len(argument))] if starred else [name]
        return (*names[: len(self.args)], *self.kwargs)

    def symbols(self) -> dict[str, int]:
        """The sizes seen, by the user's names.

        :raises SutureError: DYNAMIC, if two dimensions of one name differ
        """
        seen: dict[str, tuple[int, str]] = {}
        for leaf in self.leaves:
            for dim, name in leaf.dims.items():
                size, where = int(leaf.tensor.shape[dim]), f"dimension {dim} of {leaf.dotted}"
                if name in seen and seen[name][0] != size:
                    raise SutureError(
                        Code.DYNAMIC, f"{name} is {seen[name][0]} in {seen[name][1]} and {size} in {where}",
                        remedy="give dimensions of different sizes different names",
                    )  # fmt: skip
                seen.setdefault(name, (size, where))
        return {name: size for name, (size, _) in seen.items()}

    def enlarged(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with varying dimensions of size 1 repeated once: torch takes a size of 1 for a constant."""
        import torch.utils._pytree as pytree

        replaced: dict[int, torch.Tensor] = {}
        for leaf in self.leaves:
            tensor = leaf.tensor
            for dim in leaf.dims:
                if tensor.shape[dim] == 1:
                    tensor = torch.cat([tensor, tensor], dim)
            if tensor is not leaf.tensor:
                replaced[id(leaf.tensor)] = tensor
                leaf.tensor = tensor
        swap = lambda item: replaced.get(id(item), item)  # noqa: E731
        self.arguments = pytree.tree_map(swap, self.arguments)
        return pytree.tree_map(swap, (self.args, self.kwargs))  # type: ignore[no-any-return]

    def marks(self) -> dict[str, Any] | None:
        """The arguments' nesting with, for every tensor, the dimensions that torch must keep symbolic; None if there are none."""
        from torch.export import Dim as ExportDim

        dims = {id(leaf.tensor): leaf.dims for leaf in self.leaves}
        if not any(dims.values()):
            return None
        hint: Any = ExportDim.DYNAMIC
        marks = {key: dict.fromkeys(found, hint) for key, found in dims.items()}
        return {name: _marked(argument, marks) for name, argument in self.arguments.items()}

    def resolve(self, examples: Mapping[str, torch.Tensor]) -> dict[str, Dim]:
        """What torch's symbols are called.

        :param examples: the traced fake tensors, by the name of the graph's input
        """
        found: dict[str, Dim] = {}
        for leaf in self.leaves:
            example = examples.get(leaf.name)
            if example is None:
                continue
            for dim, name in leaf.dims.items():
                size: Any = example.shape[dim]
                expression = size.node.expr if isinstance(size, torch.SymInt) else None
                if expression is not None and expression.is_Symbol:
                    found.setdefault(str(expression), symbol(name))
        return found

    def _collect(self, name: str, dotted: str, item: Any) -> None:
        if isinstance(item, torch.Tensor):
            self.leaves.append(Leaf(name, dotted, item, {}))
            return
        import torch.utils._pytree as pytree

        paths, _ = pytree.tree_flatten_with_path(item)
        for path, leaf in paths:
            if isinstance(leaf, torch.Tensor) and path:
                keys = [str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in path]
                self.leaves.append(Leaf("_".join([name, *keys]), ".".join([dotted, *keys]), leaf, {}))

    def _mark(self, dynamic: Dynamic) -> None:
        if dynamic is None:
            return
        if not isinstance(dynamic, Mapping):
            names = list(self.arguments)
            if len(dynamic) > len(names):
                raise SutureError(
                    Code.DYNAMIC,
                    f"dynamic has {len(dynamic)} entries for {len(names)} arguments",
                    remedy="give at most one an argument",
                )
            dynamic = dict(zip(names, dynamic, strict=False))
        for name, spec in dynamic.items():
            self._mark_one(str(name), spec)

    def _mark_one(self, name: str, spec: Any) -> None:
        if spec is None:
            return
        found = [leaf for leaf in self.leaves if name in (leaf.name, leaf.dotted)]
        if not found:
            inside = [leaf for leaf in self.leaves if leaf.dotted.startswith(f"{name}.")]
            if not inside:
                raise SutureError(
                    Code.DYNAMIC, f"dynamic names the input {name!r}, which is no tensor argument",
                    remedy=nearest(name, [leaf.dotted for leaf in self.leaves], what="input"),
                )  # fmt: skip
            items = spec.items() if isinstance(spec, Mapping) else enumerate(spec)
            for key, item in items:
                self._mark_one(f"{name}.{key}", item)
            return
        leaf = found[0]
        items = spec.items() if isinstance(spec, Mapping) else enumerate(spec)
        for dim, called in items:
            if called is None:
                continue
            rank = leaf.tensor.ndim
            if not isinstance(dim, int) or not -rank <= dim < rank:
                raise SutureError(
                    Code.DYNAMIC,
                    f"dynamic names dimension {dim!r} of {name}, which has {rank}",
                    remedy=f"0 to {rank - 1} would be right",
                )
            label = called if isinstance(called, str) else str(getattr(called, "__name__", called))
            if not label.isidentifier():
                raise SutureError(
                    Code.DYNAMIC,
                    f"{label!r} is no name for dimension {dim} of {name}",
                    remedy="use a name such as 'batch'",
                )
            leaf.dims[dim % rank] = label


def _marked(item: Any, marks: Mapping[int, Any]) -> Any:
    """The marks of the tensors in a value, nested as torch wants them: classes of one's own are lists of their parts."""
    import torch.utils._pytree as pytree

    if isinstance(item, torch.Tensor):
        return marks.get(id(item)) or None
    if isinstance(item, dict):
        return {key: _marked(part, marks) for key, part in item.items()}
    if isinstance(item, list | tuple):
        parts = [_marked(part, marks) for part in item]
        return parts if isinstance(item, list) else tuple(parts)
    if type(item) in pytree.SUPPORTED_NODES:
        return [_marked(part, marks) for part in pytree.SUPPORTED_NODES[type(item)].flatten_fn(item)[0]]
    return None


def register_dataclasses(item: Any) -> bool:
    """Tell torch of the dataclasses inside a value, so that it sees the tensors in them; returns whether some were new."""
    import torch.utils._pytree as pytree

    if isinstance(item, Mapping):
        item = list(item.values())
    if isinstance(item, list | tuple):
        return sum(register_dataclasses(part) for part in item) > 0
    if not is_dataclass(item) or isinstance(item, type):
        return False
    new = type(item) not in pytree.SUPPORTED_NODES
    if new:
        torch.export.register_dataclass(
            type(item), serialized_type_name=f"{type(item).__module__}.{type(item).__qualname__}"
        )
    return register_dataclasses([getattr(item, entry.name) for entry in fields(item)]) or new


def _without_stars(signature: inspect.Signature, arguments: Mapping[str, Any]) -> inspect.Signature:
    """The signature with what `**kwargs` took as keywords of their own."""
    kept = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    known = {p.name for p in kept}
    return signature.replace(
        parameters=[*kept, *(inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY) for n in arguments if n not in known)]
    )
