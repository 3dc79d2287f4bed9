"""absorb_bias: high biases move to the next layer (Nagel et al. 2019, section 4.1.3), which lets activations have a smaller range."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph, Node, Parameter, Value
from suture.ir.semantics import evaluate
from suture.passes.contract import Contract
from suture.passes.growth.depth.positivity import is_not_negative
from suture.passes.registry import Notes, register
from suture.passes.symmetry.constant_fields import change_bias
from suture.passes.symmetry.linear_readers import linear_readers, move_into_readers
from suture.passes.symmetry.parameters import beside, like, set_operand
from suture.passes.symmetry.reach import Blame
from suture.passes.symmetry.sites import chosen
from suture.passes.symmetry.ties import Ties

_IDENTITY_ABOVE_ZERO = ("relu", "leaky_relu", "elu", "celu")
_CHANNELS = {"conv": 1, "conv_transpose": 1, "batch_norm": 1, "linear": -1, "addmm": -1}


@register(contract=Contract.APPROXIMATE)
def absorb_bias(
    graph: Graph,
    notes: Notes,
    *,
    at: tuple[str, ...] | None = None,
    deviations: float = 3.0,
    data: Mapping[str, torch.Tensor] | None = None,
) -> Graph:
    """Let layers before a ReLU write `x - c` and those behind it add `W c` to their bias, with c = max(0, mean - 3 deviations) for each channel.

    `relu(x - c) = relu(x) - c` where x is at least c: for nearly all x by the choice of c, and for all where a layer of non-negative weights reads
    what is not negative, so that its bias is the least it can write. Mean and deviation are the bias and gain of a batch norm that stands before
    the ReLU, else those of the calibration inputs.

    :param at: module paths of activations, as patterns; all if absent
    :param deviations: how many standard deviations below the mean stay untouched
    :param data: calibration inputs by name (in a script: an .npz or .safetensors file that holds them)
    """
    if not deviations >= 0:
        raise SutureError(Code.OPTION, f"deviations={deviations:g} is negative", remedy="0 or more would be right")
    result = graph.copy()
    wanted = chosen([n for n in result.nodes if n.operator.name in _IDENTITY_ABOVE_ZERO], at, "activation")
    sites = [site for node in wanted if (site := _site(node, notes)) is not None]
    measured = _measure(graph, sites, data) if data is not None else {}
    ties = Ties(result)
    exact, absorbed = True, 0
    for site in sites:
        surplus = _surplus(site, deviations, measured)
        where = site.activation.where()
        text = surplus if isinstance(surplus, str) else _absorb(result, site, surplus)
        notes.note(f"{where}: {text}")
        if not isinstance(surplus, str) and not isinstance(text, Blame):
            absorbed += 1
            exact = exact and site.proven(surplus)
    for text in ties.join():
        notes.note(text)
    if not absorbed:
        notes.not_applicable("no layer has a bias to absorb")
        return graph
    if exact:
        notes.claim(Contract.EXACT)
    return result


@dataclass(frozen=True)
class _Site:
    """An activation, the layer or norm that writes what it reads, and the dimension of the channels."""

    activation: Node
    writer: Node
    dim: int
    least: torch.Tensor | None

    def proven(self, surplus: torch.Tensor) -> bool:
        """Whether what the activation reads can nowhere be less than the surplus."""
        return self.least is not None and bool((surplus <= self.least.clamp(min=0)).all())


def _site(activation: Node, notes: Notes) -> _Site | None:
    value = activation.inputs[0]
    writer = None if value is None else value.producer
    if value is None or writer is None or writer.operator.name not in _CHANNELS:
        return None
    if len(value.uses) > 1 or value.is_graph_output():
        notes.note(f"{activation.where()}: something else reads what it reads")
        return None
    return _Site(activation, writer, _CHANNELS[writer.operator.name] % value.rank, _least(writer))


def _least(writer: Node) -> torch.Tensor | None:
    """The least that each channel of a layer can be: its bias, where neither its weights nor what it reads is negative."""
    if (
        writer.operator.name not in ("conv", "linear")
        or writer.inputs[0] is None
        or not is_not_negative(writer.inputs[0])
    ):
        return None
    weight, bias = writer.inputs[1], writer.inputs[2] if len(writer.inputs) > 2 else None
    if not isinstance(weight, Parameter) or not isinstance(bias, Parameter) or weight.data.is_meta:
        return None
    rows = (weight.data >= 0).flatten(1).all(1)
    return torch.where(rows, bias.data.detach().to(torch.float64), -torch.inf)


def _measure(
    graph: Graph, sites: list[_Site], data: Mapping[str, torch.Tensor]
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Mean and standard deviation of each channel of what the activations read, by the value's name."""
    dims = {site.writer.output.name: site.dim for site in sites if site.writer.operator.name != "batch_norm"}
    found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def watch(value: Value, tensor: torch.Tensor) -> None:
        if value.name in dims and tensor.numel():
            rows = tensor.detach().to(torch.float64).movedim(dims[value.name], 0).flatten(1)
            found[value.name] = rows.mean(1), rows.std(1, correction=0)

    if dims and not any(parameter.data.is_meta for parameter in graph.parameters.values()):
        with torch.no_grad():
            evaluate(graph, data, watch=watch)
    return found


def _surplus(
    site: _Site, deviations: float, measured: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
) -> torch.Tensor | str:
    """What a channel can be made smaller by, or why that is not known."""
    if site.writer.operator.name == "batch_norm":
        gain, bias = site.writer.inputs[1:3]
        if not isinstance(gain, Parameter) or not isinstance(bias, Parameter):
            return "the norm before it has no bias"
        mean, deviation = bias.data.detach().to(torch.float64), gain.data.detach().to(torch.float64).abs()
    elif site.writer.output.name in measured:
        mean, deviation = measured[site.writer.output.name]
    elif site.least is not None and bool((site.least > 0).any()):
        mean, deviation = site.least, torch.zeros_like(site.least)
    else:
        return "no batch norm before it tells the mean: give data"
    surplus = (mean - deviations * deviation).clamp(min=0)
    if surplus.is_meta:
        return "its numbers are not there yet"
    if not bool(surplus.isfinite().all()):
        return "its mean is not finite"
    return surplus if bool((surplus > 0).any()) else "no channel lies far enough above zero"


def _absorb(graph: Graph, site: _Site, surplus: torch.Tensor) -> str | Blame:
    found = linear_readers(graph, site.activation, dim=site.dim)
    if isinstance(found, Blame):
        return found
    layers = ", ".join(layer.node.path or layer.node.outputs[0].name for layer in found.layers)
    move_into_readers(graph, found, torch.ones_like(surplus), -surplus, "lowered")
    _lower(graph, site, surplus)
    graph.rename_result(site.writer.output, f"{site.writer.output.name}_lowered")
    count = int((surplus > 0).sum())
    return f"{count} of {len(surplus)} channels are lower by up to {float(surplus.max()):.3g}, which {layers} take up"


def _lower(graph: Graph, site: _Site, surplus: torch.Tensor) -> None:
    if site.writer.operator.name != "batch_norm":
        shape = [-1 if k == site.dim else 1 for k in range(site.writer.output.rank)]
        change_bias(graph, site.writer, -surplus.reshape(shape))
        return
    bias = site.writer.inputs[2]
    if isinstance(bias, Parameter):
        bias.assign(like(bias.data.detach().to(torch.float64) - surplus, bias))
        return
    name = beside(graph, site.writer.inputs[1], site.writer, "bias")
    set_operand(site.writer, 2, graph.add_parameter(name, (-surplus).to(site.writer.output.dtype)))
