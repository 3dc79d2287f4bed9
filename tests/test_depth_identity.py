"""Which parameters make a block the identity, and which operator prevents it: read off graphs written as modules."""

from __future__ import annotations

import growable
import pytest
import torch
from deep_models import ScaledBlock, trace_decoder
from torch import nn

import suture
from suture.ir.regions import at_path, stack_at
from suture.passes.growth.depth.identity import IdentityForm, identity_form
from suture.passes.growth.depth.positivity import is_not_negative


class Mixed(nn.Module):
    """x + f(x) for a function of the module and x, between a stem and a head."""

    def __init__(self, forward, **children: nn.Module) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.block = Inner(forward, **children)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.block(torch.relu(self.stem(x))))


class Inner(nn.Module):
    def __init__(self, forward, **children: nn.Module) -> None:
        super().__init__()
        self.function = forward
        for name, child in children.items():
            setattr(self, name, child)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self, x)


def form_of(forward, **children: nn.Module) -> IdentityForm:
    torch.manual_seed(0)
    graph = suture.trace(Mixed(forward, **children).eval(), torch.randn(2, 4, 6))
    stem = next(node for node in graph.nodes if node.operator.name == "relu").output
    return identity_form(at_path(graph, "block", stream=stem))


def edits(form: IdentityForm) -> dict[str, str]:
    assert not form.blame, form.blame
    return {edit.parameter.name.removeprefix("block."): edit.kind for edit in form.edits}


def lin(inputs: int = 8, outputs: int = 8) -> nn.Linear:
    return nn.Linear(inputs, outputs)


ZEROED = [
    ("the last layer of the branch", lambda s, x: x + s.b(torch.tanh(s.a(x))), {"a": lin(), "b": lin()}, {"b.weight", "b.bias"}),
    ("either side of the sum", lambda s, x: s.b(torch.tanh(s.a(x))) + x, {"a": lin(), "b": lin()}, {"b.weight", "b.bias"}),
    ("a difference", lambda s, x: x - s.a(x), {"a": lin()}, {"a.weight", "a.bias"}),
    ("a norm at the end of the branch", lambda s, x: x + s.n(s.a(x)), {"a": lin(), "n": nn.LayerNorm(8)}, {"n.weight", "n.bias"}),
    ("a norm without gain", lambda s, x: x + s.n(s.a(x)), {"a": lin(), "n": nn.LayerNorm(8, elementwise_affine=False)}, {"a.weight", "a.bias"}),
    ("an RMS norm's gain", lambda s, x: x + s.n(s.a(x)), {"a": lin(), "n": nn.RMSNorm(8)}, {"n.weight"}),
    ("the gated, not the gate", lambda s, x: x + s.a(x) * torch.sigmoid(s.b(x)), {"a": lin(), "b": lin()}, {"a.weight", "a.bias"}),
    ("all parts of a concatenation", lambda s, x: x + torch.cat([s.a(x), torch.relu(s.b(x))], -1), {"a": lin(8, 5), "b": lin(8, 3)}, {"a.weight", "a.bias", "b.weight", "b.bias"}),
    ("two branches in one sum", lambda s, x: x + (s.a(x) + s.b(x)), {"a": lin(), "b": lin()}, {"a.weight", "a.bias", "b.weight", "b.bias"}),
    ("two sums in a row", lambda s, x: (x + s.a(x)) + s.b(x + s.a(x)), {"a": lin(), "b": lin()}, {"a.weight", "a.bias", "b.weight", "b.bias"}),
    ("behind layout operators that undo one another", lambda s, x: (x.transpose(1, 2) + s.a(x).transpose(1, 2)).transpose(1, 2), {"a": lin()}, {"a.weight", "a.bias"}),
    ("a rectified stream", lambda s, x: torch.relu(x + s.a(x)), {"a": lin()}, {"a.weight", "a.bias"}),
    ("a dropped-out branch and stream", lambda s, x: s.d(x) + s.d(s.a(x)), {"a": lin(), "d": nn.Dropout(0.5)}, {"a.weight", "a.bias"}),
]  # fmt: skip


@pytest.mark.parametrize(("forward", "children", "zeroed"), [row[1:] for row in ZEROED], ids=[row[0] for row in ZEROED])
def test_the_parameters_nearest_to_the_sum_are_zeroed(forward, children, zeroed):
    assert edits(form_of(forward, **children)) == dict.fromkeys(zeroed, "zero")


def test_a_layer_scale_is_zeroed_rather_than_the_layer_before_it():
    graph = trace_decoder(growable.Shape(layers=2), ScaledBlock)
    assert {edit.parameter.name for edit in identity_form(stack_at(graph).blocks[0]).edits} == {"layers.0.scale"}


def test_layers_without_a_sum_become_unit_matrices():
    form = form_of(lambda s, x: torch.relu(s.b(torch.relu(s.a(x)))), a=lin(), b=nn.Linear(8, 8, bias=False))
    assert edits(form) == {"a.weight": "unit", "a.bias": "zero", "b.weight": "unit"}
    assert form.bit_exact


BLAMED = [
    ("a norm on the stream", lambda s, x: s.n(x + s.a(x)), {"a": lin(), "n": nn.LayerNorm(8)}, "layer_norm block.n: normalises the stream itself"),
    ("an activation on the stream", lambda s, x: nn.functional.gelu(x + s.a(x)), {"a": lin()}, "gelu block: changes what passes through it"),
    ("a branch that does not vanish", lambda s, x: x + torch.sigmoid(s.a(x)), {"a": lin()}, "sigmoid block: does not vanish where what it reads does"),
    ("a branch without parameters", lambda s, x: x + torch.softmax(x, -1), {}, "softmax block: does not vanish where what it reads does"),
    ("layers that change the width on the way", lambda s, x: torch.relu(s.b(torch.relu(s.a(x)))), {"a": lin(8, 5), "b": lin(5, 8)}, "linear block.b: changes the stream itself"),
    ("elements that change their places", lambda s, x: x.flip(-1) + s.a(x), {"a": lin()}, "flip block: moves elements of the stream to other places"),
    ("a scaled stream", lambda s, x: 2.0 * x + s.a(x), {"a": lin()}, "mul block: changes the stream itself"),
]  # fmt: skip


@pytest.mark.parametrize(("forward", "children", "blame"), [row[1:] for row in BLAMED], ids=[row[0] for row in BLAMED])
def test_the_operator_that_prevents_the_identity_is_named(forward, children, blame):
    assert form_of(forward, **children).blame.startswith(blame)


def shared_with_the_next_block(leaf: str) -> IdentityForm:
    graph = trace_decoder(growable.Shape(layers=2))
    graph.replace_uses(graph.parameters[f"layers.1.{leaf}"], graph.parameters[f"layers.0.{leaf}"])
    entry = next(node for node in graph.nodes if node.path == "embed").output
    return identity_form(at_path(graph, "layers.0", stream=entry))


def test_a_weight_that_another_block_reads_stays_and_the_layer_before_is_zeroed():
    assert shared_with_the_next_block("feed.down.weight").layers == (
        "linear layers.0.attention.o", "linear layers.0.feed.up", "linear layers.0.feed.down"
    )  # fmt: skip


def test_a_bias_that_another_block_reads_prevents_the_identity():
    form = shared_with_the_next_block("feed.down.bias")
    assert form.blame == "linear layers.0.feed.down: reads @layers.0.feed.down.bias, which others read too"


def test_a_block_with_zeroed_layers_is_known_as_the_identity():
    graph = suture.passes.insert_identity(trace_decoder(growable.Shape(layers=2)), after=(0,))
    assert [identity_form(block).holds() for block in stack_at(graph).blocks] == [False, True, False]


SIGNS = [
    (lambda x: torch.relu(x), True),
    (lambda x: torch.relu(x).mean(-1), True),
    (lambda x: torch.relu(x) + torch.sigmoid(x), True),
    (lambda x: torch.relu(x) * 2.0, True),
    (lambda x: torch.clamp(x, min=0.5), True),
    (lambda x: torch.cat([torch.exp(x), x.abs()]), True),
    (lambda x: torch.relu(x) * -2.0, False),
    (lambda x: torch.relu(x) - 1.0, False),
    (lambda x: torch.relu(x) + x, False),
    (lambda x: torch.clamp(x, min=-0.5), False),
    (lambda x: nn.functional.pad(torch.relu(x), (1, 1), value=-1.0), False),
]


@pytest.mark.parametrize(("function", "expected"), SIGNS)
def test_the_sign_of_a_value_is_read_off_its_producers(function, expected):
    class Program(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return function(x)

    graph = suture.trace(Program(), torch.randn(3, 4))
    assert is_not_negative(graph.outputs[0]) is expected
    assert bool((Program()(torch.randn(50, 4)) >= 0).all()) is expected
