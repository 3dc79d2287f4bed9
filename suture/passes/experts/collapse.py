"""collapse_experts: any mixture of experts becomes one feed-forward layer, whose weights are a mean of theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph, Value
from suture.ir.semantics import evaluate
from suture.passes.contract import Contract
from suture.passes.experts.merge_experts import Mixture, find_mixtures, merge_mixture, remove_unread
from suture.passes.experts.weight_averaging import collapse_partitions
from suture.passes.low_rank.covariance import as_declared
from suture.passes.registry import Notes, register
from suture.passes.stitch.calibration import batches


@register(contract=Contract.APPROXIMATE)
def collapse_experts(
    graph: Graph,
    notes: Notes,
    *,
    at: tuple[str, ...] | None = None,
    data: Mapping[str, torch.Tensor] | None = None,
) -> Graph:
    """Average the experts of every mixture into one layer, without a router.

    Experts by random partition (`ewa`) are averaged as evaluation has them averaged already: that is exact. Those behind a router are averaged
    alike, or with data by what share of the gates each has had; that is exact where the experts are equal and the gates of a position sum to 1.

    :param at: the modules that hold routed experts, as patterns; all mixtures if absent
    :param data: calibration inputs by name (in a script: an .npz or .safetensors file that holds them)
    """
    result = graph.copy()
    mixtures = find_mixtures(result, at)
    partitions = collapse_partitions(result) if at is None else 0
    if not mixtures and not partitions:
        notes.not_applicable("no layer has experts")
        return result
    read = {p.name for p in result.parameters.values() if p.uses}
    before = graph.stats()
    shares = _measured(result, mixtures, data, notes)
    for mixture, share in zip(mixtures, shares, strict=True):
        merge_mixture(result, mixture, "mean", share)
    remove_unread(result, read)
    after = result.stats()
    if partitions:
        notes.note(f"{partitions} linear maps are the mean of their experts")
    if mixtures:
        notes.note(f"{len(mixtures)} mixtures are one layer each")
    notes.note(f"{before.parameters:,} parameters, now {after.parameters:,}")
    if not mixtures:
        notes.claim(Contract.EXACT)
    return result


def _measured(
    graph: Graph, mixtures: Sequence[Mixture], data: Mapping[str, torch.Tensor] | None, notes: Notes
) -> list[Sequence[float] | None]:
    """What share of the gates each expert of each mixture has on the data; None where that is not known.

    :raises SutureError: CALIBRATION or INPUT, if the data do not fit the graph
    """
    if data is None or not mixtures:
        return [None] * len(mixtures)
    if any(parameter.data.is_meta for parameter in graph.parameters.values()):
        notes.note("estimated: the gates decide what an expert counts for")
        return [None] * len(mixtures)
    gates = [mixture.gates() for mixture in mixtures]
    wanted = {value for row in gates if row is not None for value in row}
    totals: dict[Value, float] = dict.fromkeys(wanted, 0.0)

    def keep(value: Value, tensor: torch.Tensor) -> None:
        if value in wanted:
            totals[value] += float(tensor.to(torch.float64).abs().sum())

    for inputs in batches(graph, data):
        try:
            with torch.no_grad():
                evaluate(graph, as_declared(graph, inputs), watch=keep)
        except (IndexError, RuntimeError) as error:  # a token beyond the vocabulary, say
            what = f"the graph cannot run on the data: {str(error).splitlines()[0]}"
            raise SutureError(Code.CALIBRATION, what, where=graph.name, remedy="give inputs that it takes") from None
    found: list[Sequence[float] | None] = []
    for mixture, row in zip(mixtures, gates, strict=True):
        amounts = None if row is None else [totals[value] for value in row]
        whole = 0.0 if amounts is None else sum(amounts)
        if amounts is None or not 0 < whole < float("inf"):
            why = "no gate of theirs is found" if amounts is None else "their gates have no share"
            notes.note(f"{mixture.path}: its experts count alike, for {why}")
            found.append(None)
            continue
        found.append([amount / whole for amount in amounts])
        notes.note(f"{mixture.path}: experts count for {', '.join(f'{amount / whole:.3f}' for amount in amounts)}")
    return found
