"""Canonical forms: before as a module writes it, after as the graph has it, the same bits throughout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import zoo
from torch import nn

from suture.frontends.canonical import canonicalise
from suture.frontends.torch_export import trace
from suture.ir.graph import Graph
from suture.ir.semantics import evaluate


class Apply(nn.Module):
    """A module that is one function of x and of a linear map of x."""

    def __init__(self, function: Callable[..., Any], features: int) -> None:
        super().__init__()
        self.function = function
        self.proj = nn.Linear(8, features)

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(self.proj(x))


def traced(function: Callable[..., Any], features: int) -> Graph:
    """Trace, and hold the graph against the module."""
    torch.manual_seed(0)
    module = Apply(function, features).eval()
    graph = trace(module, torch.randn(2, 5, 8), dynamic={"x": {0: "batch", 1: "sequence"}})
    for batch, sequence in ((2, 5), (3, 7)):
        x = torch.randn(batch, sequence, 8)
        expected = module(x)
        expected = list(expected) if isinstance(expected, tuple | list) else [expected]
        for ours, theirs in zip(evaluate(graph, [x]), expected, strict=True):
            assert torch.equal(ours, theirs)
    return graph


def chain(graph: Graph, output: int = 0) -> list[str]:
    """The operators on the way from an output back to the projection, in the order of the program."""
    found: list[str] = []
    value = graph.outputs[output]
    while value.producer is not None:
        found.append(value.producer.operator.name)
        assert value.producer.inputs[0] is not None
        value = value.producer.inputs[0]
    return found[::-1]


# Packed projections, as the libraries write them. Three heads of 4, queries, keys and values.
def _timm(y: torch.Tensor) -> Any:
    b, n, _ = y.shape
    return y.reshape(b, n, 3, 3, 4).permute(2, 0, 3, 1, 4).unbind(0)


def _timm_by_index(y: torch.Tensor) -> Any:
    b, n, _ = y.shape
    qkv = y.reshape(b, n, 3, 3, 4).permute(2, 0, 3, 1, 4)
    return qkv[0], qkv[1], qkv[2]


def _without_permute(y: torch.Tensor) -> Any:
    b, n, _ = y.shape
    qkv = y.view(b, n, 3, 3, 4)
    return tuple(part.transpose(1, 2) for part in (qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]))


def _chunked_heads(y: torch.Tensor) -> Any:
    b, n, _ = y.shape
    return tuple(part.transpose(1, 2) for part in y.view(b, n, 9, 4).chunk(3, dim=2))


def _plain_chunks(y: torch.Tensor) -> Any:
    b, n, _ = y.shape
    return tuple(part.view(b, n, 3, 4).transpose(1, 2) for part in y.chunk(3, dim=-1))


def _torch_attention(y: torch.Tensor) -> Any:
    b, n, _ = y.shape
    qkv = y.unflatten(-1, (3, 12)).unsqueeze(0).transpose(0, -2).squeeze(-2).contiguous()
    return tuple(qkv[k].view(b, n, 3, 4).transpose(1, 2) for k in range(3))


PACKED = {
    f.__name__: f for f in (_timm, _timm_by_index, _without_permute, _chunked_heads, _plain_chunks, _torch_attention)
}


@pytest.mark.parametrize("name", PACKED)
def test_packed_projections_become_three_paths(name: str) -> None:
    graph = traced(PACKED[name], 36)
    for output in range(3):
        assert chain(graph, output) == ["linear", "split", "reshape", "permute"]
    splits = [node for node in graph.nodes if node.operator.name == "split"]
    assert len(splits) == 1
    assert [str(value.type) for value in splits[0].outputs] == ["f32[batch, sequence, 12]"] * 3


def test_an_inner_factor_keeps_the_outer_one_as_a_dimension() -> None:
    """BLOOM packs queries, keys and values within each head: (heads, 3, width)."""

    def bloom(y: torch.Tensor) -> Any:
        b, n, _ = y.shape
        qkv = y.view(b, n, 3, 3, 4)
        return qkv[..., 0, :], qkv[..., 1, :], qkv[..., 2, :]

    graph = traced(bloom, 36)
    assert chain(graph) == ["linear", "reshape", "split"]
    (split,) = [node for node in graph.nodes if node.operator.name == "split"]
    assert str(split.inputs[0].type) == "f32[batch, sequence, 3, 12]"
    assert [str(value.type) for value in split.outputs] == ["f32[batch, sequence, 3, 4]"] * 3


def test_uneven_parts_of_a_factor() -> None:
    """Two query heads to one of keys and one of values, as grouped attention packs them."""

    def grouped(y: torch.Tensor) -> Any:
        b, n, _ = y.shape
        return y.view(b, n, 4, 4).split([2, 1, 1], dim=2)

    graph = traced(grouped, 16)
    (split,) = [node for node in graph.nodes if node.operator.name == "split"]
    assert [value.shape[2] for value in split.outputs] == [8, 4, 4]
    assert split.inputs[0].producer.operator.name == "linear"


def test_some_of_the_parts_are_enough() -> None:
    graph = traced(lambda y: _timm(y)[1], 36)
    assert chain(graph) == ["linear", "split", "reshape", "permute"]


def test_one_index_of_what_no_reshape_made_stays_a_select() -> None:
    assert chain(traced(lambda y: y[:, 0], 6)) == ["linear", "select"]


def test_an_innermost_factor_stays_where_it_is() -> None:
    """Every other index of a dimension is no range of it."""
    graph = traced(lambda y: y.unflatten(-1, (6, 2))[..., 0], 12)
    assert chain(graph) == ["linear", "reshape", "select"]


def test_a_channel_shuffle_stays_one() -> None:
    def shuffle(y: torch.Tensor) -> Any:
        mixed = y.unflatten(-1, (2, 6)).transpose(-1, -2).flatten(-2)
        return mixed.chunk(2, -1)

    graph = traced(shuffle, 12)
    assert chain(graph) == ["linear", "reshape", "permute", "reshape", "split"]


def test_slices_that_take_a_dimension_apart_are_a_split() -> None:
    def rotate_half(y: torch.Tensor) -> torch.Tensor:
        half = y.shape[-1] // 2
        return torch.cat((-y[..., half:], y[..., :half]), dim=-1)

    assert Counter(node.operator.name for node in traced(rotate_half, 8)) == {
        "linear": 1,
        "split": 1,
        "neg": 1,
        "concat": 1,
    }


def test_slices_that_overlap_stay_slices() -> None:
    graph = traced(lambda y: y[..., 1:] - y[..., :-1], 8)
    assert Counter(node.operator.name for node in graph) == {"linear": 1, "slice": 2, "sub": 1}


IDENTITIES: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], list[str]]] = {
    "views of views": (
        lambda y: y.flatten(1).unflatten(1, (-1, 2, 3)).reshape(y.shape[0], -1, 3, 2),
        ["linear", "reshape"],
    ),
    "there and back": (lambda y: y.unsqueeze(1).squeeze(1).flatten(1).view(y.shape), ["linear"]),
    "orders of orders": (lambda y: y.transpose(1, 2).permute(2, 0, 1), ["linear", "permute"]),
    "orders undone": (lambda y: y.transpose(1, 2).mT, ["linear"]),
    "orders of ones": (lambda y: y.unsqueeze(0).transpose(0, 1).squeeze(1), ["linear"]),
    "casts to the same": (lambda y: y.float().to(torch.float32).type_as(y), ["linear"]),
    "whole slices": (lambda y: y[:, :, 0:][..., :6], ["linear"]),
    "products by one": (lambda y: y * 1 / 1, ["linear"]),
    "sums with zero": (lambda y: y + 0.0, ["linear", "add"]),  # -0.0 + 0.0 is 0.0
    "expansions": (lambda y: y[:, :1].expand(-1, 4, -1).expand(y.shape[0], 4, 6), ["linear", "slice", "expand"]),
    "no dropout": (lambda y: nn.functional.dropout(y, 0.0), ["linear"]),
    "dropout": (lambda y: nn.functional.dropout(y, 0.5, False), ["linear", "dropout"]),
}


@pytest.mark.parametrize("name", IDENTITIES)
def test_what_changes_nothing_goes(name: str) -> None:
    function, expected = IDENTITIES[name]
    assert chain(traced(function, 6)) == expected


def test_positions_are_computed_once() -> None:
    def masks(y: torch.Tensor) -> torch.Tensor:
        rows, columns = torch.arange(y.shape[1]), torch.arange(y.shape[1])
        causal = rows[:, None] >= columns[None, :]
        again = torch.arange(y.shape[1])[:, None] >= columns[None, :]
        return y + causal.sum() + again.sum()

    found = Counter(node.operator.name for node in traced(masks, 6))
    assert found["arange"] == found["ge"] == found["sum"] == 1


def test_two_dropouts_of_one_value_stay_two() -> None:
    graph = traced(lambda y: nn.functional.dropout(y, 0.5, False) + nn.functional.dropout(y, 0.5, False), 6)
    assert Counter(node.operator.name for node in graph)["dropout"] == 2


class RootMeanSquare(nn.Module):
    """RMS norm as LLaMA and T5 write it."""

    def __init__(self, gain: bool = True, half: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8)) if gain else None
        self.half_precision = half

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        given = x.dtype
        wide = x.to(torch.float32)
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)
        return normed if self.weight is None else self.weight * normed.to(given)


@pytest.mark.parametrize("gain", [True, False])
def test_written_out_rms_norm(gain: bool) -> None:
    module = RootMeanSquare(gain)
    x = torch.randn(3, 5, 8)
    graph = trace(module, x, dynamic={"x": {0: "batch"}})
    (node,) = graph.nodes
    assert node.operator.name == "rms_norm"
    assert node.attributes == {"rank": 1, "eps": 1e-5}
    assert len(node.inputs) == 1 + gain
    assert torch.equal(evaluate(graph, [x])[0], module(x))


def test_rms_norm_in_half_precision_keeps_its_casts() -> None:
    module = RootMeanSquare().to(torch.bfloat16)
    x = torch.randn(3, 5, 8, dtype=torch.bfloat16)
    graph = trace(module, x)
    assert [node.operator.name for node in graph] == ["cast", "rms_norm", "cast", "mul"]
    assert torch.equal(evaluate(graph, [x])[0], module(x))


@pytest.mark.parametrize(
    "function",
    [
        lambda y: y * torch.rsqrt(y.pow(2).mean(1, keepdim=True) + 1e-5),
        lambda y: y * torch.rsqrt(y.pow(4).mean(-1, keepdim=True) + 1e-5),
        lambda y: y.abs() * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-5),
        lambda y: [y * (r := torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-5)), r],
    ],
    ids=["another dimension", "another power", "another operand", "a root that is read elsewhere"],
)
def test_what_is_not_quite_an_rms_norm_stays(function: Callable[[torch.Tensor], Any]) -> None:
    assert all(node.operator.name != "rms_norm" for node in traced(function, 6))


@pytest.mark.parametrize(("name", "count"), [("llama", 5), ("qwen2", 5), ("t5", 12)])
def test_language_models_have_their_norms(name: str, count: int) -> None:
    entry = zoo.ENTRIES[name]
    args, kwargs = entry.args()
    graph = trace(entry.module(), args, kwargs, dynamic=entry.dynamic)
    found = Counter(node.operator.name for node in graph)
    assert found["rms_norm"] == count
    assert found["rsqrt"] == 0


def test_canonical_form_is_a_fixed_point() -> None:
    entry = zoo.ENTRIES["vit_tiny_patch16_224"]
    graph = trace(entry.module(), *entry.args(), dynamic=entry.dynamic)
    again = graph.copy()
    canonicalise(again)
    assert str(again) == str(graph)
    assert Counter(node.operator.name for node in graph)["split"] == 12
