"""Norms whose readers are all linear: there each channel may have a quantiser of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from suture.ir.graph import Graph, Node, Parameter, Use, Value
from suture.passes.symmetry.norm_affine import linear_readers
from suture.passes.symmetry.reach import Blame

NORMS = ("layer_norm", "rms_norm")


@dataclass(frozen=True)
class NormSite:
    """A norm and the operands by which layers read it.

    :param symmetric: whether it has no shift, so that all channels must share their zero point
    """

    norm: Node
    readers: tuple[Use, ...]
    symmetric: bool

    @property
    def name(self) -> str:
        """What a person calls it."""
        return self.norm.path or self.norm.where()

    def rows(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """What the norm writes on each batch, as [channels, n] in float64."""
        return torch.cat([tensor.reshape(-1, tensor.shape[-1]) for tensor in tensors]).double().T

    def gram(self) -> torch.Tensor:
        """W^T W of the layers that read the channels one by one; of others the identity [channels, channels]."""
        channels = self.norm.output.shape[-1]
        assert isinstance(channels, int)
        total = torch.zeros(channels, channels, dtype=torch.float64)
        for use in self.readers:
            weight = use.node.inputs[1]
            if use.node.operator.name == "linear" and isinstance(weight, Parameter) and weight.shape[1] == channels:
                wide = weight.data.detach().double()
                total += wide.T @ wide
            else:
                total += torch.eye(channels, dtype=torch.float64)
        return total


def norm_sites(graph: Graph, quantised: Mapping[Value, object], note: Callable[[str], None]) -> list[NormSite]:
    """The norms whose readers are all linear, and of which one at least is quantised; the notes say why others are none."""
    found = []
    for node in graph.nodes:
        if node.operator.name not in NORMS:
            continue
        symmetric = node.operator.name == "rms_norm"
        readers = linear_readers(graph, node, shifted=not symmetric)
        name = node.path or node.where()
        if isinstance(readers, Blame):
            note(f"{name} has one quantiser for all channels: {readers}")
            continue
        uses = tuple(Use(reader.node, reader.operand) for reader in readers.layers)
        if any(use.node.inputs[use.index] in quantised for use in uses):
            found.append(NormSite(node, uses, symmetric))
        else:
            note(f"{name} stays: none of its readers is quantised")
    return found
