"""Models composed of several: against library modules that hold copies of the same tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import zoo
from growable import Decoder, Shape
from torch import nn
from zoo import randomise

import suture
import suture.ir.regions
from suture import Code, SutureError
from suture.ir.graph import Graph
from suture.passes import compose

TOKENS = torch.arange(12).reshape(2, 6) % 64


def llama(layers: int, seed: int = 0) -> nn.Module:
    zoo.declare_torchvision_operators()
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2, vocab_size=64,
        max_position_embeddings=32, use_cache=False,
    )  # fmt: skip
    torch.manual_seed(seed)
    return randomise(LlamaForCausalLM(config), seed).double().eval()


def trace(module: nn.Module) -> Graph:
    tokens = {0: "batch", 1: "sequence"}
    return suture.trace(module, (), {"input_ids": TOKENS}, dynamic={"input_ids": tokens})


def logits(module: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return module(input_ids=TOKENS).logits


def hand_composed(layers: list[tuple[nn.Module, int]]) -> nn.Module:
    """A library module of so many layers, the rest being the first model's."""
    base = layers[0][0]
    made = llama(len(layers))
    made.load_state_dict(
        {k: v for k, v in base.state_dict().items() if ".layers." not in k}
        | {
            f"model.layers.{target}.{name}": tensor
            for target, (module, source) in enumerate(layers)
            for name, tensor in module.model.layers[source].state_dict().items()
        }
    )
    return made


@pytest.fixture(scope="module")
def family() -> tuple[list[nn.Module], list[Graph]]:
    modules = [llama(3), llama(4, seed=1), llama(3, seed=2)]
    return modules, [trace(module) for module in modules]


def check_against(result: Graph, oracle: nn.Module) -> None:
    """The same logits; the same state dict, which the library's class takes strictly."""
    module = suture.to_torch(result)
    with torch.no_grad():
        torch.testing.assert_close(module(input_ids=TOKENS).logits, logits(oracle), rtol=1e-10, atol=1e-12)
    state = module.state_dict()
    fresh = llama(len(oracle.model.layers), seed=9)
    fresh.load_state_dict(state)
    torch.testing.assert_close(logits(fresh), logits(oracle), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("layers", "blocks"),
    [
        (("0:2", "1.1:4"), [(0, 0), (0, 1), (1, 1), (1, 2), (1, 3)]),
        (("2.2", "0:", "1.0"), [(2, 2), (0, 0), (0, 1), (0, 2), (1, 0)]),
        (("1.0:2", "1.1:3", "0.2"), [(1, 0), (1, 1), (1, 1), (1, 2), (0, 2)]),
        ((":1",), [(0, 0)]),
    ],
)
def test_layers_of_several_models(
    family: tuple[list[nn.Module], list[Graph]], layers: tuple[str, ...], blocks: list[tuple[int, int]]
) -> None:
    modules, graphs = family
    oracle = hand_composed([(modules[0], 0)] + [(modules[m], k) for m, k in blocks])
    oracle.model.layers = oracle.model.layers[1:]
    result = compose(graphs[0], others=tuple(graphs[1:]), layers=layers)
    check_against(result, oracle)
    assert result.history[-1].deviation is not None
    assert len(result.history[-1].notes) == len(layers)


def test_swapped_layers(family: tuple[list[nn.Module], list[Graph]]) -> None:
    modules, graphs = family
    result = compose(graphs[0], others=tuple(graphs[1:]), swap=("1:3 from 1", "0 from 2"))
    check_against(result, hand_composed([(modules[0], 0), (modules[1], 1), (modules[1], 2)]).apply(
        lambda m: m.layers.__setitem__(0, modules[2].model.layers[0]) if hasattr(m, "layers") else None
    ))  # fmt: skip


def test_blocks_that_come_twice_are_copies(family: tuple[list[nn.Module], list[Graph]]) -> None:
    _, graphs = family
    result = compose(graphs[0], others=(graphs[1],), layers=("1.0", "1.0"))
    first, second = (result.parameters[f"model.layers.{k}.mlp.up_proj.weight"].data for k in range(2))
    assert torch.equal(first, second)
    assert first.data_ptr() != second.data_ptr()


def test_a_scaled_block_adds_a_share(family: tuple[list[nn.Module], list[Graph]]) -> None:
    modules, graphs = family

    class Scaled(nn.Module):
        def __init__(self, block: nn.Module, share: float) -> None:
            super().__init__()
            self.block, self.share = block, share

        def forward(self, x: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
            return x + self.share * (self.block(x, *args, **kwargs) - x)

    oracle = hand_composed([(modules[0], 0), (modules[0], 1), (modules[1], 3)])
    oracle.model.layers[2] = Scaled(oracle.model.layers[2], 0.25)
    result = compose(graphs[0], others=(graphs[1],), layers=("0:2", "1.3"), scale=(1.0, 0.25))
    with torch.no_grad():
        received = suture.to_torch(result)(input_ids=TOKENS).logits
    torch.testing.assert_close(received, logits(oracle), rtol=1e-10, atol=1e-12)
    llama(3).load_state_dict(suture.to_torch(result).state_dict())  # the shares are no part of a checkpoint


def test_the_same_blocks_are_not_applicable(family: tuple[list[nn.Module], list[Graph]]) -> None:
    _, graphs = family
    record = compose(graphs[0], layers=("0:2", "2")).history[-1]
    assert record.outcome == "not applicable"


def staged() -> nn.Sequential:
    """Two stages of convolutional blocks; the first block of the second is of another shape."""
    sizes = [(4, 4), (4, 4), (4, 8), (8, 8), (8, 8), (8, 8)]
    return nn.Sequential(
        *(nn.Sequential(nn.Conv2d(a, b, 3, 1 + (a != b), 1), nn.BatchNorm2d(b), nn.ReLU()) for a, b in sizes)
    )


def test_convolutional_blocks_of_two_networks() -> None:
    x = torch.randn(2, 4, 8, 8)
    modules = [randomise(staged(), seed).eval() for seed in range(2)]
    graphs = [suture.trace(module, x, dynamic=[{0: "batch"}]) for module in modules]
    stack = max(suture.ir.regions.stacks(graphs[0]), key=len)
    assert len(stack) == 3
    result = compose(graphs[0], others=(graphs[1],), at=stack.name, layers=("0:2", "1.2"))
    modules[0][5] = modules[1][5]
    with torch.no_grad():
        torch.testing.assert_close(suture.to_torch(result)(x), modules[0](x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ({"layers": ("0:9",)}, Code.REGION, "model.layers of model 0 has 3"),
        ({"layers": ("1.7",)}, Code.REGION, "model 1 has 4"),
        ({"layers": ("3.0",)}, Code.OPTION, "no model 3"),
        ({"layers": ("2:2",)}, Code.OPTION, "empty"),
        ({"layers": ("one",)}, Code.OPTION, "no range of layers"),
        ({"layers": ("",)}, Code.OPTION, "no range of layers"),
        ({"swap": ("1:2",)}, Code.OPTION, "no swap of layers"),
        ({"swap": ("3 from 1",)}, Code.REGION, "model 0 has 3"),
        ({}, Code.OPTION, "layers or swap"),
        ({"layers": ("0",), "swap": ("0 from 1",)}, Code.OPTION, "layers or swap"),
        ({"layers": ("0", "1"), "scale": (1.0,)}, Code.OPTION, "1 scales for 2"),
        ({"layers": ("0",), "at": "model.layer"}, Code.SITE, "model.layers"),
    ],
)
def test_bad_layers_are_refused(
    family: tuple[list[nn.Module], list[Graph]], options: Mapping[str, tuple[str, ...]], code: Code, words: str
) -> None:
    _, graphs = family
    with pytest.raises(SutureError) as caught:
        compose(graphs[0], others=tuple(graphs[1:]), **options)
    assert caught.value.code is code
    assert words in str(caught.value)


def test_models_of_other_blocks_are_refused_naming_the_first_difference() -> None:
    tokens = torch.arange(10).reshape(2, 5) % 11
    one, other = (suture.trace(Decoder(Shape(hidden=hidden)).double().eval(), tokens) for hidden in (20, 28))
    with pytest.raises(SutureError) as caught:
        compose(one, others=(other,), layers=("0", "1.1"))
    assert caught.value.code is Code.REGION
    for words in ("layers.1 of model 1", "20", "28"):
        assert words in str(caught.value)


NETS = """
import torch
from torch import nn
def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Sequential(*[nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(3)]), nn.Linear(4, 2))
"""


def test_a_script_composes_several_models(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(NETS)
    lines = [
        "suture 1", *(f'model {name} = torch "nets:net" args {seed} input f32[batch, 3]' for seed, name in enumerate("abc")),
        'compose a others b, c layers "0:2", "1.2", "2.0:2"', 'save a to "a.suture-graph"',
    ]  # fmt: skip
    (tmp_path / "s.suture").write_text("\n".join(lines) + "\n")
    suture.run(tmp_path / "s.suture")
    namespace: dict[str, object] = {}
    exec(NETS, namespace)
    one, two, three = (namespace["net"](seed) for seed in range(3))
    oracle = nn.Sequential(one[0], *one[1][:2], two[1][2], *three[1][:2], one[2])
    x = torch.randn(5, 3)
    with torch.no_grad():
        torch.testing.assert_close(suture.to_torch(suture.load(tmp_path / "a.suture-graph"))(x), oracle(x))
