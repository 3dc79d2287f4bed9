"""Blocks dropped, shared and swapped by their measured influence: against modules in which the same was done by hand."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zoo
from assembled import Passing, StepUNet, inputs, trace_unet, unet
from torch import nn

import suture
from suture import Code, SutureError, surgery
from suture.ir.graph import Graph
from suture.passes import assemble
from suture.passes.assembly.region_edits import rank

BLOCKS = ["down.0.0", "down.0.1", "down.1.0", "down.1.1", "middle.0", "middle.1", "up.0.1", "up.1.1"]
AT = ("down.*.*", "middle.*", "up.*.*")


@pytest.fixture(scope="module")
def net() -> StepUNet:
    return unet()


@pytest.fixture(scope="module")
def graph(net: StepUNet) -> Graph:
    return trace_unet(net)


def data() -> dict[str, torch.Tensor]:
    return dict(zip(("x", "time"), inputs(), strict=True))


def with_block(net: nn.Module, path: str, block: nn.Module) -> nn.Module:
    made = copy.deepcopy(net)
    parent, _, leaf = path.rpartition(".")
    made.get_submodule(parent)[int(leaf)] = block
    return made


def change(net: nn.Module, edited: nn.Module) -> float:
    with torch.no_grad():
        expected, received = net(*inputs()), edited(*inputs())
    return float((expected - received).norm() / expected.norm())


def same(result: Graph, oracle: nn.Module, arguments: tuple[torch.Tensor, ...] | None = None) -> None:
    given = arguments if arguments is not None else inputs(seed=8)
    with torch.no_grad():
        torch.testing.assert_close(suture.to_torch(result)(*given), oracle(*given), rtol=1e-9, atol=1e-11)


def dropped_by_hand(net: nn.Module, count: int) -> tuple[nn.Module, list[str]]:
    """The least influential block dropped, again and again."""
    left, gone = list(BLOCKS), []
    for _ in range(count):
        tries = {path: with_block(net, path, Passing()) for path in left}
        least = min(left, key=lambda path: change(net, tries[path]))
        net = tries[least]
        gone.append(least)
        left.remove(least)
    return net, gone


def test_influence_is_the_change_that_dropping_makes(net: StepUNet, graph: Graph) -> None:
    found = rank(graph, data(), AT)
    assert sorted(item.path for item in found) == BLOCKS  # those that change the number of channels cannot be dropped
    assert [item.change for item in found] == sorted(item.change for item in found)
    for item in found:
        assert item.change == pytest.approx(change(net, with_block(net, item.path, Passing())), rel=1e-9)
        assert item.parameters == sum(p.numel() for p in net.get_submodule(item.path).parameters())


def test_numbered_modules_are_ranked_if_none_are_named(graph: Graph) -> None:
    paths = {item.path for item in rank(graph, data())}
    assert paths == {"down.0", "down.1", "middle.0", "middle.1", "up.0.1", "up.1.1"}  # the outermost


@pytest.mark.parametrize("count", [1, 3])
def test_the_least_influential_blocks_are_dropped(net: StepUNet, graph: Graph, count: int) -> None:
    oracle, gone = dropped_by_hand(net, count)
    result = assemble(graph, at=AT, count=count, data=data())
    same(result, oracle)
    assert [note.split(":")[1].strip() for note in result.history[-1].notes] == gone
    assert not [name for name in result.parameters if name.startswith(tuple(path + "." for path in gone))]


def test_named_blocks_are_dropped_without_data(net: StepUNet, graph: Graph) -> None:
    result = assemble(graph, at=("middle.*",))
    same(result, with_block(with_block(net, "middle.0", Passing()), "middle.1", Passing()))


def test_a_block_shares_the_weights_of_the_one_that_changes_least(net: StepUNet, graph: Graph) -> None:
    # blocks of one resolution are alike
    sizes = {"down.0": 8, "up.1": 8, "down.1": 4, "up.0": 4, "middle": 2}
    level = {path: next(size for start, size in sizes.items() if path.startswith(start)) for path in BLOCKS}
    tries = {
        (one, other): change(net, with_block(net, one, net.get_submodule(other)))
        for one in BLOCKS for other in BLOCKS if one != other and level[one] == level[other]
    }  # fmt: skip
    one, other = min(tries, key=tries.__getitem__)
    result = assemble(graph, action="share", at=AT, count=1, data=data())
    same(result, with_block(net, one, net.get_submodule(other)))
    block = net.get_submodule(one)
    assert result.stats().parameters == graph.stats().parameters - sum(p.numel() for p in block.parameters())
    module = suture.to_torch(result)
    assert module.get_parameter(f"{one}.first.weight") is module.get_parameter(f"{other}.first.weight")
    assert set(module.state_dict()) == set(net.state_dict())


def test_blocks_that_lend_their_weights_keep_them(graph: Graph) -> None:
    result = assemble(graph, action="share", at=AT, data=data())
    notes = result.history[-1].notes
    borrowers = [note.split(":")[1].strip() for note in notes]
    lenders = [note.split(" with ")[1].split(" ")[0] for note in notes]
    assert not set(borrowers) & set(lenders)
    assert len(borrowers) == len(set(borrowers)) >= 4


def test_blocks_are_swapped_for_a_siblings(net: StepUNet, graph: Graph) -> None:
    sibling = unet(seed=3)
    other = trace_unet(sibling)
    at = ("head", "up.*.0", "middle")
    result = assemble(graph, action="swap", at=at, other=other)
    oracle = copy.deepcopy(net)
    for path in ("head", "up.0.0", "up.1.0", "middle"):
        oracle.get_submodule(path).load_state_dict(sibling.get_submodule(path).state_dict())
    same(result, oracle)
    chosen = assemble(graph, action="swap", at=("head", "stem", "middle"), other=other, count=1, data=data())
    least = min(
        ("head", "stem", "middle"),
        key=lambda path: change(net, _swapped(net, sibling, path)),
    )
    same(chosen, _swapped(net, sibling, least))


def _swapped(net: nn.Module, sibling: nn.Module, path: str) -> nn.Module:
    made = copy.deepcopy(net)
    made.get_submodule(path).load_state_dict(sibling.get_submodule(path).state_dict())
    return made


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.middle, self.head = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.middle(self.embed(tokens)))


def test_a_tied_tensor_stays_where_it_is_read_outside_of_the_swap() -> None:
    torch.manual_seed(0)
    one, two = Tied().double(), Tied().double()
    tokens = torch.arange(6).reshape(2, 3)
    graphs = [suture.trace(module, tokens) for module in (one, two)]
    result = assemble(graphs[0], action="swap", at=("head",), other=graphs[1])
    with torch.no_grad():
        expected = two.head(one.middle(one.embed(tokens)))
    torch.testing.assert_close(suture.to_torch(result)(tokens), expected)
    assert set(suture.to_torch(result).state_dict()) == set(one.state_dict())
    assert result.parameters["head.weight"].data is not result.parameters["embed.weight"].data


def test_blocks_of_a_library_model_are_swapped() -> None:
    entry = zoo.ENTRIES["bert"]
    args, kwargs = entry.args()
    modules = [zoo.randomise(entry.module(seed), seed).double() for seed in range(2)]
    graphs = [suture.trace(module, args, kwargs, dynamic=entry.dynamic) for module in modules]
    result = assemble(graphs[0], action="swap", at=("encoder.layer.1", "pooler"), other=graphs[1])
    for path in ("encoder.layer.1", "pooler"):
        modules[0].get_submodule(path).load_state_dict(modules[1].get_submodule(path).state_dict())
    with torch.no_grad():
        received, expected = suture.to_torch(result)(**kwargs), modules[0](**kwargs)
    torch.testing.assert_close(received.pooler_output, expected.pooler_output, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ({"action": "swap"}, Code.OPTION, "another model"),
        ({"action": "drop", "other": "self"}, Code.OPTION, "no other model"),
        ({"count": 1}, Code.CALIBRATION, "no"),
        ({"count": 0, "data": "data"}, Code.KEEP, "0 regions"),
        ({"at": ("middl.*",)}, Code.SITE, "middle"),
        ({"at": ("up.0.0",)}, Code.SEAM, "f64[batch, 8, 4, 4]"),
        ({"at": ("stem", "head")}, Code.REGION, "no module keeps"),
        ({"data": {"x": torch.zeros(2, 2, 8, 8)}, "at": AT}, Code.CALIBRATION, "calibration data"),
    ],
)
def test_what_cannot_be_assembled_is_refused(graph: Graph, options: dict[str, Any], code: Code, words: str) -> None:
    given = {key: {"self": graph, "data": data()}.get(value, value) if isinstance(value, str) and key != "action" else value
             for key, value in options.items()}  # fmt: skip
    with pytest.raises(SutureError) as caught:
        assemble(graph, **given)
    assert caught.value.code is code
    assert words in str(caught.value)


def test_a_swap_needs_like_regions_and_names_the_first_difference(graph: Graph) -> None:
    torch.manual_seed(0)
    other = trace_unet(StepUNet(width=6).double().eval())
    with pytest.raises(SutureError) as caught:
        assemble(graph, action="swap", at=("middle",), other=other)
    assert caught.value.code is Code.REGION
    assert "f64[batch, 6, 2, 2]" in str(caught.value)


def test_regions_without_likeness_share_nothing(graph: Graph) -> None:
    record = assemble(graph, action="share", at=("middle.0", "up.1.1")).history[-1]
    assert record.outcome == "not applicable"


NETS = "import assembled\ndef net(seed=0):\n    return assembled.unet(seed).float()\n"


def test_a_script_assembles(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(NETS)
    np.savez(tmp_path / "calibration.npz", **{k: v.float().numpy() for k, v in data().items()})
    lines = [
        "suture 1", *(f'model {name} = torch "nets:net" args {seed} input f32[batch, 2, 8, 8], f32[batch, 1]' for seed, name in enumerate("ab")),
        'assemble a action drop at "down.*.*", "middle.*" count 2 data "calibration.npz"',
        'assemble a action swap at "head" other b', 'save a to "a.suture-graph"',
    ]  # fmt: skip
    (tmp_path / "s.suture").write_text("\n".join(lines) + "\n")
    for carry_out in (surgery.check, suture.run):
        report = carry_out(tmp_path / "s.suture")
        assert [outcome.status for outcome in report.outcomes[2:4]] == ["done", "done"]
        assert ("estimated" in report.outcomes[2].notes[0]) == report.planned
