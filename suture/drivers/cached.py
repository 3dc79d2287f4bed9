"""A model whose regions are reused from call to call, with the state that this needs: `passes.reuse` made it, this counts its calls."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from suture.backends.torch_module import to_torch
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph
from suture.passes.assembly.reuse import REFRESH, caches


class CachedModule(nn.Module):
    """A model, called as before `reuse`: its cached regions run at every k-th call, and where the inputs have other shapes than last time.

    :param graph: what `passes.reuse` gave
    :param every: k; with 1 the model computes what it did without the caches
    :raises SutureError: OPTION, if k is below 1; REGION, if the graph caches nothing
    """

    def __init__(self, graph: Graph, every: int = 2) -> None:
        super().__init__()
        if every < 1:
            raise SutureError(
                Code.OPTION, f"a region cannot run every {every} calls", remedy="1 or more would be right"
            )
        self._caches = caches(graph)
        if not self._caches:
            raise SutureError(
                Code.REGION, "the graph caches no region", where=graph.name, remedy="give what `reuse` made"
            )
        self.net = to_torch(graph)
        self.every = every
        self._types = {value.name: value.type for value in graph.inputs if value.name in self._caches}
        self.reset()

    def reset(self) -> None:
        """Begin anew: the next call runs everything."""
        self.calls = 0
        self._held: dict[str, torch.Tensor] = {}
        self._shapes: list[torch.Size] = []

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model gives for its own inputs."""
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        shapes = [tensor.shape for tensor in tensors]
        if shapes != self._shapes:
            self.reset()
        refresh = self.calls % self.every == 0
        held = self._held or self._placeholders(tensors)
        given = {REFRESH: torch.tensor(refresh), **held}
        result, kept = self._parted(self.net(*args, **kwargs, **given))
        self._held, self._shapes = kept, shapes
        self.calls += 1
        return result

    def _placeholders(self, tensors: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """What stands for a cache at the first call, where nothing reads it: of its rank, as small as may be."""
        device = tensors[0].device if tensors else torch.device("cpu")
        return {
            name: torch.zeros([d if isinstance(d, int) else 1 for d in type_.shape], dtype=type_.dtype, device=device)
            for name, type_ in self._types.items()
        }

    def _parted(self, outputs: Any) -> tuple[Any, dict[str, torch.Tensor]]:
        """The model's own result, and the caches, which follow it."""
        count = len(self._caches)
        if isinstance(outputs, dict):
            kept = {name: outputs[following] for name, following in self._caches.items()}
            own = {key: value for key, value in outputs.items() if key not in self._caches.values()}
            return type(outputs)(own), kept
        kept = dict(zip(self._caches, outputs[-count:], strict=True))
        rest = outputs[:-count]
        return rest[0] if len(rest) == 1 else rest, kept
