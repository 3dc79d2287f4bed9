"""The pass `repq`."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph, Node, Use, Value
from suture.passes.contract import Contract
from suture.passes.quantise.parameters import QuantiserParameters
from suture.passes.registry import Notes, register
from suture.passes.repq.attention import write_out
from suture.passes.repq.calibrating import (
    Activation,
    LogScale,
    Quantiser,
    Softmax,
    channel_calibration,
    in_order,
    planned,
    tensor_calibration,
)
from suture.passes.repq.inserting import insert_log_quantiser, insert_quantiser
from suture.passes.repq.norm_sites import NormSite, norm_sites
from suture.passes.repq.products import Product, products
from suture.passes.repq.reparameterise import reparameterise as share_quantiser
from suture.passes.repq.weights import Weights, store_weights
from suture.passes.rewriting import Refusal
from suture.passes.symmetry.norm_affine import shift_and_scale

_BITS = range(2, 9)


@register(contract=Contract.APPROXIMATE)
def repq(
    graph: Graph,
    notes: Notes,
    *,
    data: Mapping[str, torch.Tensor] | None = None,
    weight_bits: int = 8,
    activation_bits: int = 8,
    edge_bits: int = 8,
    softmax: Softmax = "uniform",
    reparameterise: bool = True,
    clip: bool = True,
    rebuild: bool = True,
    damping: float = 0.05,
    exclude: tuple[str, ...] = (),
) -> Graph:
    """Quantise everything that a transformer multiplies, weights and activations, on a few dozen samples.

    Attention is written out, so that queries, keys, values and probabilities become integers too. Norms whose readers are all linear have a
    quantiser a channel, which the norm's affine part and the readers take up, so that one quantiser for the tensor is left (RepQ-ViT, Li et al.
    2023, section 3.2). What is exported at 8 bits with softmax uniform is plain QuantizeLinear and DequantizeLinear.

    :param data: calibration inputs by name
    :param weight_bits: of weights, 2 to 8, one quantiser an output; with zero points below 8 bits
    :param activation_bits: of activations, 2 to 8, one unsigned quantiser a tensor
    :param edge_bits: of both, for the products before which or after which there is no other
    :param softmax: `log2` quantises the logarithm of attention's probabilities (RepQ-ViT, section 3.3), which ONNX cannot say
    :param reparameterise: whether norms have a quantiser a channel; else all activations have one by percentiles
    :param clip: whether ranges of the channels are clipped at both ends, by search and gradients (RepQuant, Li et al. 2024)
    :param rebuild: whether weights and biases make up for what rounding their inputs lost
    :param damping: share of the mean second moment that holds rebuilt weights to what they were
    :param exclude: patterns of module paths that stay real
    :raises SutureError: CALIBRATION, without data; QUANTISER, for bits that cannot be; SITE, for a pattern that matches nothing
    """
    for name, bits in (("weight_bits", weight_bits), ("activation_bits", activation_bits), ("edge_bits", edge_bits)):
        if bits not in _BITS:
            raise SutureError(Code.QUANTISER, f"{name} of {bits}", remedy=f"{_BITS[0]} to {_BITS[-1]} would be right")
    if damping <= 0:
        raise SutureError(Code.OPTION, f"a damping of {damping:g}", remedy="a small share such as 0.05 would be right")
    bare = any(parameter.data.is_meta for parameter in graph.parameters.values())
    if not bare and not data:
        raise SutureError(
            Code.CALIBRATION, "ranges are measured on data, and there are none", where=graph.name, remedy="give data"
        )
    real = graph.copy()
    _write_out_attention(real, exclude, notes)
    found = products(real, exclude, notes.note)
    if not found:
        notes.not_applicable("nothing sums products")
        return real
    activations = _activations(real, found, activation_bits, edge_bits)
    known: dict[Value, QuantiserParameters] = {}
    if reparameterise:
        known = _share(real, activations, None if bare else data, clip, notes)
    quantisers = (
        planned(activations, softmax)
        if bare or data is None
        else tensor_calibration(real, activations, known, data, softmax)
    )
    result = real.copy()
    twins = _Twins.of(real, result)
    for value, activation in activations.items():
        _insert(result, twins, value, activation, quantisers[value])
    weights = Weights(weight_bits, edge_bits, damping, rebuild)
    store_weights(real, result, [twins.product(product) for product in found], None if bare else data, weights, notes)
    notes.note(f"{len(activations)} activations have integers of {activation_bits} bits, at the edges {edge_bits}")
    return result


def _write_out_attention(graph: Graph, exclude: Sequence[str], notes: Notes) -> None:
    for node in graph.nodes:
        if any(fnmatch.fnmatchcase(node.path, pattern) for pattern in exclude):
            continue
        where = node.where()
        done = write_out(graph, node)
        if isinstance(done, Refusal):
            notes.note(f"{where} stays: {done.reason}")
        elif done is not None:
            notes.note(f"{where} {done}")


def _activations(graph: Graph, found: Sequence[Product], bits: int, edge_bits: int) -> dict[Value, Activation]:
    """What products read, each value once: with the bits of an edge if it is read at one."""
    gathered: dict[Value, list[tuple[Use, bool]]] = {}
    for product in found:
        for use in product.activations:
            value = use.node.inputs[use.index]
            assert value is not None
            gathered.setdefault(value, []).append((use, product.edge))
    made = {
        value: Activation(value, tuple(use for use, _ in uses), max(edge_bits if edge else bits for _, edge in uses))
        for value, uses in gathered.items()
    }
    return in_order(graph, made)


def _share(
    graph: Graph,
    activations: Mapping[Value, Activation],
    data: Mapping[str, torch.Tensor] | None,
    clip: bool,
    notes: Notes,
) -> dict[Value, QuantiserParameters]:
    """Re-parameterise every norm that can be; the quantisers of what its readers read."""
    sites = norm_sites(graph, activations, notes.note)
    if not sites:
        notes.note("no norm has linear readers alone: every activation has one quantiser by percentiles")
        return {}
    if data is None:
        for site in sites:
            ones = torch.ones(_width(site), dtype=torch.float64, device="meta")
            shift_and_scale(graph, site.norm, ones, None if site.symmetric else ones)
        return {}
    bits = {site: max(activations[value].bits for value in _read(site) if value in activations) for site in sites}
    known: dict[Value, QuantiserParameters] = {}
    for site, quantiser in channel_calibration(graph, bits, data, clip=clip).items():
        try:
            made, untied = share_quantiser(graph, site.norm, quantiser)
        except SutureError as error:
            if error.code is not Code.SYMMETRY:
                raise
            notes.note(f"{site.name} has one quantiser for all channels: {error.what}")
            continue
        spread = float(quantiser.scale.max() / quantiser.scale.min())
        notes.note(f"{site.name} takes up {len(quantiser.scale)} quantisers, scales {spread:.3g} to 1")
        for text in untied:
            notes.note(text)
        known |= {value: made.quantiser() for value in _read(site) if value in activations}
    return known


def _width(site: NormSite) -> int:
    width = site.norm.output.shape[-1]
    assert isinstance(width, int)
    return width


def _read(site: NormSite) -> list[Value]:
    values = (use.node.inputs[use.index] for use in site.readers)
    return [value for value in dict.fromkeys(values) if value is not None]


@dataclass(frozen=True)
class _Twins:
    """The values and nodes of a copy, by those of the graph that was copied."""

    values: Mapping[str, Value]
    nodes: Mapping[Node, Node]

    @classmethod
    def of(cls, graph: Graph, copy: Graph) -> _Twins:
        return cls({value.name: value for value in copy.values()}, dict(zip(graph.nodes, copy.nodes, strict=True)))

    def use(self, use: Use) -> Use:
        return Use(self.nodes[use.node], use.index)

    def product(self, product: Product) -> tuple[Product, Product]:
        """A product, and its twin."""
        activations, weights = (tuple(self.use(use) for use in each) for each in (product.activations, product.weights))
        return product, Product(self.nodes[product.node], activations, weights, product.edge)


def _insert(graph: Graph, twins: _Twins, value: Value, activation: Activation, quantiser: Quantiser) -> None:
    uses = [twins.use(use) for use in activation.uses]
    twin = uses[0].node.inputs[uses[0].index]
    assert twin is not None
    if isinstance(quantiser, LogScale):
        insert_log_quantiser(graph, twin, uses, quantiser.scale, quantiser.bits)
    else:
        insert_quantiser(graph, twin, uses, quantiser)


__all__ = ["repq"]
