"""Layer skipping: the influence of a block against what hooks on the original module see, and models without the blocks of least influence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import zoo
from torch import nn

import suture
from suture.frontends.archive import load_graph, save_graph
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph
from suture.ir.verify import verify
from suture.passes import skip_layers
from suture.passes.assembly.influence import influences


class Block(nn.Module):
    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.norm, self.fc = nn.LayerNorm(width), nn.Linear(width, width)
        self.fc.weight.data *= scale
        self.fc.bias.data *= scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.fc(self.norm(x))


class Net(nn.Module):
    """Blocks that add more or less to the stream."""

    def __init__(self, *scales: float) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(5, 8), nn.Linear(8, 3)
        self.layers = nn.ModuleList(Block(8, scale) for scale in scales)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class Convolutions(nn.Module):
    """Residual blocks of images: features are the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 1)) for _ in range(3)
        )
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x.mean(dim=(2, 3)))


def net_and_graph(*scales: float) -> tuple[Net, Graph]:
    torch.manual_seed(0)
    net = Net(*scales).eval()
    return net, suture.trace(net, (inputs(2),), dynamic={"x": {0: "batch"}})


def inputs(count: int) -> torch.Tensor:
    return torch.randn(count, 4, 5, generator=torch.Generator().manual_seed(1))


def streams(net: nn.Module, x: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What flows into and out of every layer, seen by hooks."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    hooks = [layer.register_forward_hook(lambda _, args, out: seen.append((args[0], out))) for layer in net.layers]  # type: ignore[union-attr]
    net(x)
    for hook in hooks:
        hook.remove()
    return seen


def without(net: Net, *gone: int) -> Net:
    twin = Net(*[1.0] * (len(net.layers) - len(gone))).eval()
    twin.load_state_dict({n: t for n, t in net.state_dict().items() if not n.startswith("layers.")}, strict=False)
    for layer, source in zip(twin.layers, [k for k in range(len(net.layers)) if k not in gone], strict=True):
        layer.load_state_dict(net.layers[source].state_dict())
    return twin


def test_the_influence_of_a_block_is_one_minus_the_cosine_of_its_ends() -> None:
    net, graph = net_and_graph(1.0, 0.2, 0.6, 0.1)
    x = inputs(40)  # more than one batch of the calibration
    found = influences(graph, {"x": x})
    assert [item.block for item in found] == [f"layers.{k}" for k in range(4)]
    for item, (before, after) in zip(found, streams(net, x), strict=True):
        assert item.value == pytest.approx(float(1 - F.cosine_similarity(before, after, dim=-1).mean()), abs=1e-6)


def test_the_relative_residual_is_what_a_block_adds() -> None:
    net, graph = net_and_graph(1.0, 0.2, 0.6)
    x = inputs(7)
    for item, (before, after) in zip(influences(graph, {"x": x}, by="residual"), streams(net, x), strict=True):
        assert item.value == pytest.approx(float((after - before).norm() / before.norm()), rel=1e-5)


def test_the_influence_on_the_result_is_that_of_taking_the_block_out() -> None:
    net, graph = net_and_graph(1.0, 0.2, 0.6)
    x = inputs(7)
    whole = net(x)
    for k, item in enumerate(influences(graph, {"x": x}, by="loss")):
        moved = (without(net, k)(x) - whole).abs().max() / whole.abs().max()
        assert item.value == pytest.approx(float(moved), rel=1e-4)


def test_the_features_of_images_are_their_channels() -> None:
    torch.manual_seed(0)
    net = Convolutions().eval()
    x = torch.randn(4, 1, 6, 6)
    graph = suture.trace(net, (x,), dynamic={"x": {0: "batch"}})
    stream = net.stem(x)
    for item, layer in zip(influences(graph, {"x": x}), net.layers, strict=True):
        after = stream + layer(stream)
        assert item.value == pytest.approx(float(1 - F.cosine_similarity(stream, after, dim=1).mean()), abs=1e-6)
        stream = after


@pytest.mark.parametrize("by", ["cosine", "residual", "loss"])
def test_blocks_that_add_least_are_left_out_and_the_rest_close_up(by: str) -> None:
    net, graph = net_and_graph(1.0, 0.01, 0.9, 0.02)
    x = inputs(6)
    shorter = skip_layers(graph, drop=2, by=by, data={"x": x})
    verify(shorter)
    expected = without(net, 1, 3)
    module = suture.to_torch(shorter)
    torch.testing.assert_close(module(x), expected(x))
    assert list(module.state_dict()) == list(expected.state_dict())
    Net(1.0, 1.0).load_state_dict(module.state_dict(), strict=True)
    assert shorter.parameters["layers.1.fc.weight"].data is graph.parameters["layers.2.fc.weight"].data
    notes = shorter.history[-1].notes
    assert [note.rpartition(", ")[2] for note in notes[:4]] == ["stays", "left out", "stays", "left out"]
    assert notes[4].startswith("approximate: the block of most influence left out is layers.")
    assert shorter.history[-1].deviation is not None


def test_a_block_that_does_nothing_goes_first_and_nothing_changes() -> None:
    net, graph = net_and_graph(1.0, 0.0, 0.5)
    shorter = skip_layers(graph, keep=0.67, data={"x": inputs(6)})
    assert shorter.history[-1].notes[-1] == "exact on the data: what is left out changed nothing"
    assert shorter.history[-1].deviation == 0.0
    assert shorter.stats().parameters == sum(p.numel() for p in without(net, 1).parameters())


def test_a_shorter_bert_is_the_library_s_own() -> None:
    zoo.declare_torchvision_operators()  # transformers looks for them
    import transformers

    sizes = {
        "hidden_size": 16,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "vocab_size": 40,
        "max_position_embeddings": 16,
    }
    torch.manual_seed(0)
    model = transformers.BertModel(transformers.BertConfig(**sizes, num_hidden_layers=3)).eval()
    ids = torch.randint(0, 40, (2, 6), generator=torch.Generator().manual_seed(0))
    graph = suture.trace(model, (), {"input_ids": ids})
    shorter = skip_layers(graph, drop=1, data={"input_ids": ids})
    library = transformers.BertModel(transformers.BertConfig(**sizes, num_hidden_layers=2)).eval()
    module = suture.to_torch(shorter)
    library.load_state_dict(module.state_dict(), strict=True)
    torch.testing.assert_close(
        module(input_ids=ids)["last_hidden_state"], library(ids).last_hidden_state, rtol=1e-4, atol=1e-5
    )


def test_without_weights_the_plan_has_the_sizes_of_the_run() -> None:
    _, graph = net_and_graph(1.0, 0.1, 0.5)
    planned = graph.copy()
    for parameter in planned.parameters.values():
        parameter.assign(parameter.data.detach().to("meta"))
    found = skip_layers(planned, drop=1)
    run = skip_layers(graph, drop=1, data={"x": inputs(3)})
    assert found.stats() == run.stats()
    assert found.history[-1].notes[0].startswith("estimated")


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ({}, Code.KEEP, "said twice, or not at all; give drop or keep"),
        ({"drop": 1, "keep": 0.5}, Code.KEEP, "said twice, or not at all"),
        ({"drop": 3}, Code.KEEP, "0 of 3 blocks would stay; leave 1 to 3"),
        ({"drop": -1}, Code.KEEP, "4 of 3 blocks would stay"),
        ({"keep": 0.0}, Code.KEEP, "0 of 3 blocks would stay"),
        ({"drop": 1}, Code.CALIBRATION, "influence is measured on data, and there are none; give data"),
        ({"drop": 1, "data": {"y": torch.zeros(2, 4, 5)}}, Code.CALIBRATION, "the calibration data have no 'x'"),
        (
            {"drop": 1, "by": "angle", "data": {"x": torch.zeros(2, 4, 5)}},
            Code.OPTION,
            "it takes one of 'cosine', 'residual', 'loss'",
        ),
        ({"drop": 1, "at": "blocks"}, Code.SITE, "layers"),
    ],
)
def test_what_cannot_be_left_out_is_refused(options: dict[str, object], code: Code, words: str) -> None:
    _, graph = net_and_graph(1.0, 0.1, 0.5)
    before = str(graph)
    with pytest.raises(SutureError, match=words) as caught:
        skip_layers(graph, **options)
    assert caught.value.code is code
    assert "\n" not in str(caught.value)
    assert str(graph) == before


def test_keeping_all_blocks_is_said() -> None:
    _, graph = net_and_graph(1.0, 0.1)
    record = skip_layers(graph, keep=1.0).history[-1]
    assert record.outcome == "not applicable"
    assert record.notes == ("layers keeps all of its 2 blocks",)


def test_a_script_skips_layers_by_data_in_a_file(tmp_path: Path) -> None:
    net, graph = net_and_graph(1.0, 0.01, 0.9)
    save_graph(graph, tmp_path / "net.suture-graph")
    np.savez(tmp_path / "calibration.npz", x=inputs(6).numpy())
    script = tmp_path / "skip.suture"
    script.write_text(
        'suture 1\n\nmodel net = graph "net.suture-graph"\nskip_layers net drop 1 by cosine data "calibration.npz"\nsave net to "short.suture-graph"\n'
    )
    suture.run(script)
    x = inputs(2)
    torch.testing.assert_close(suture.to_torch(load_graph(tmp_path / "short.suture-graph"))(x), without(net, 1)(x))
