"""The vocabulary of depth surgery, against modules put together by hand."""

from __future__ import annotations

import copy

import pytest
import torch
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import suture
from suture.ir.equality import same_graph
from suture.ir.graph import Graph
from suture.ir.regions import Region, at_path, segments, stack_at
from suture.ir.splice import arrange, extract, insert, join, rearrange, remove, repeat, replace
from suture.ir.verify import verify


class _Block(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


class _Net(nn.Module):
    """A flat sequence: stem, blocks, head are numbered through."""

    def __init__(self, depth: int = 3, width: int = 6, hidden: int = 8) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(4, width), *[_Block(width, hidden) for _ in range(depth)], nn.Linear(width, 2)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def _net(depth: int = 3, seed: int = 0) -> _Net:
    torch.manual_seed(seed)
    return _Net(depth).eval()


def _graph(module: nn.Module) -> Graph:
    return suture.trace(module, torch.zeros(2, 4), dynamic=[{0: "batch"}])


X = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))


def _run(graph: Graph) -> torch.Tensor:
    verify(graph)
    return suture.evaluate(graph, [X])[0]


@given(st.lists(st.integers(0, 2), min_size=1, max_size=6), st.booleans())
@settings(max_examples=25)
def test_an_arranged_stack_is_the_sequence_of_its_blocks(order: list[int], tie: bool) -> None:
    module = _net()
    graph = _graph(module)
    arrange(stack_at(graph), order, tie=tie)
    stem, *blocks, head = module.layers
    expected = nn.Sequential(stem, *[blocks[index] for index in order], head)(X)
    assert torch.equal(_run(graph), expected)
    assert _run(suture.trace(suture.to_torch(graph), X, dynamic={"x": {0: "batch"}})).equal(expected)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=6))
@settings(max_examples=10)
def test_an_arranged_stack_is_numbered_like_a_model_of_that_depth(order: list[int]) -> None:
    graph = _graph(_net())
    arrange(stack_at(graph), order)
    larger = _Net(len(order))
    state = suture.to_torch(graph).state_dict()
    assert list(state) == list(larger.state_dict())
    larger.load_state_dict(state)
    assert torch.equal(larger.eval()(X), _run(graph))
    paths = {node.path for node in graph.nodes}
    assert f"layers.{len(order)}.up" in paths
    assert f"layers.{len(order) + 2}" not in paths


def test_copies_train_apart_and_ties_together() -> None:
    for tie in (False, True):
        graph = _graph(_net())
        repeat(stack_at(graph), 2, tie=tie)
        module = suture.to_torch(graph)
        trained = dict(module.named_parameters())
        first = module.get_parameter("layers.1.up.weight")
        second = module.get_parameter("layers.4.up.weight")
        assert (first is second) == tie
        assert len(trained) == (2 + 3 * 6 + 2 if tie else 2 + 6 * 6 + 2)


def test_an_arranged_stack_leaves_its_source_alone() -> None:
    module = _net()
    graph = _graph(module)
    before = str(graph)
    copied = graph.copy()
    repeat(stack_at(copied), 2)
    copied.parameters["layers.4.up.weight"].data.detach().zero_()
    assert str(graph) == before
    assert same_graph(graph, _graph(module), weights=True) is None


def test_the_identical_order_changes_nothing() -> None:
    for name in ("bert", "gpt2", "llama", "resnet18", "torchvision_vit"):
        entry = zoo.ENTRIES[name]
        args, kwargs = entry.args(2, 8)
        graph = suture.trace(entry.module(), args, kwargs, dynamic=entry.dynamic)
        same = graph.copy()
        arrange(stack_at(same), range(len(stack_at(same))))
        verify(same)
        assert list(same.parameters) == list(graph.parameters)
        assert all(same.parameters[key].data is p.data for key, p in graph.parameters.items())
        assert sorted(v.name for n in same.nodes for v in n.outputs) == sorted(
            v.name for n in graph.nodes for v in n.outputs
        )
        inputs = [tensor for tensor in (*args, *kwargs.values()) if isinstance(tensor, torch.Tensor)]
        for a, b in zip(suture.evaluate(graph, inputs), suture.evaluate(same, inputs), strict=True):
            assert torch.equal(a, b)


def test_an_extracted_block_computes_what_its_module_does() -> None:
    module = _net()
    piece = extract(at_path(_graph(module), "layers.2"))
    verify(piece)
    x = torch.randn(7, 6)
    assert torch.equal(suture.evaluate(piece, [x])[0], module.layers[2](x))
    assert list(piece.parameters) == [f"layers.2.{name}" for name, _ in module.layers[2].named_parameters()]


def test_segments_put_together_are_the_model() -> None:
    graph = _graph(_net())
    value = X
    for piece in segments(graph):
        (value,) = suture.evaluate(extract(piece), [value])
    assert torch.equal(value, _run(graph))


def test_a_region_is_replaced_by_another_models() -> None:
    one, other = _net(seed=0), _net(seed=1)
    graph = _graph(one)
    replace(at_path(graph, "layers.2"), extract(at_path(_graph(other), "layers.3")))
    mixed = copy.deepcopy(one)
    mixed.layers[2] = other.layers[3]
    assert torch.equal(_run(graph), mixed(X))
    # the name was taken by the tensor of block 3: it got a number, and is not mixed up with it
    assert graph.parameters["layers.3.up.weight"].data is one.layers[3].up.weight.data or torch.equal(
        graph.parameters["layers.3.up.weight"].data, one.layers[3].up.weight
    )


def test_a_replaced_region_may_give_its_names_to_the_new_one() -> None:
    one, other = _net(seed=0), _net(seed=1)
    graph = _graph(one)
    names = list(graph.parameters)
    replace(at_path(graph, "layers.2"), extract(at_path(_graph(other), "layers.2")))
    assert list(graph.parameters) == names
    one.load_state_dict({**one.state_dict(), **{k: v for k, v in other.state_dict().items() if "layers.2." in k}})
    assert torch.equal(_run(graph), one(X))


def test_a_piece_is_inserted_behind_a_cut() -> None:
    module = _net()
    graph = _graph(module)
    piece = extract(at_path(_graph(_net(seed=3)), "layers.1"))
    insert(at_path(graph, "layers.2").output, piece)
    extra = _net(seed=3).layers[1]
    expected = module.layers[3:](extra(module.layers[:3](X)))
    assert torch.equal(_run(graph), expected)


def test_a_piece_behind_the_output_becomes_the_output() -> None:
    graph = _graph(nn.Sequential(nn.Linear(4, 4)))
    piece = extract(at_path(_graph(nn.Sequential(nn.Linear(4, 4), nn.ReLU())), "1"))
    before = _run(graph)
    insert(graph.outputs[0], piece)
    assert torch.equal(_run(graph), before.relu())
    assert graph.output_names == ["output"]


def test_a_removed_region_lets_the_stream_pass() -> None:
    module = _net()
    graph = _graph(module)
    remove(at_path(graph, "layers.2"))
    assert torch.equal(_run(graph), module.layers[3:](module.layers[:2](X)))
    assert not any(name.startswith("layers.2.") for name in graph.parameters)


def test_two_models_are_joined_where_their_types_agree() -> None:
    front, back = _net(seed=0), _net(seed=1)
    a, b = _graph(front), _graph(back)
    exit, entry = at_path(a, "layers.1").output, at_path(b, "layers.3").entry
    joined = join(a, exit, b, entry, prefixes=("front.", "back."))
    expected = back.layers[3:](front.layers[:2](X))
    assert torch.equal(_run(joined), expected)
    assert torch.equal(suture.to_torch(joined)(X), expected)
    assert set(joined.parameters) == {
        f"front.layers.{k}.{n}" for k in (0, 1) for n, _ in front.layers[k].named_parameters()
    } | {f"back.layers.{k}.{n}" for k in (3, 4) for n, _ in back.layers[k].named_parameters()}


def test_two_models_are_joined_through_an_adapter() -> None:
    torch.manual_seed(0)
    front, back, bridge = _Net(2, 6).eval(), _Net(2, 10).eval(), nn.Linear(6, 10)
    a, b = _graph(front), _graph(back)
    adapter = suture.trace(bridge, torch.zeros(2, 6), dynamic=[{0: "n"}])
    with pytest.raises(suture.SutureError, match=r"S111.*f32\[batch, 10\].*f32\[batch, 6\]"):
        join(a, at_path(a, "layers.1").output, b, at_path(b, "layers.2").entry)
    joined = join(a, at_path(a, "layers.1").output, b, at_path(b, "layers.2").entry, adapter, prefixes=("a.", "b."))
    assert torch.equal(_run(joined), back.layers[2:](bridge(front.layers[:2](X))))


def test_the_back_of_a_joined_model_keeps_what_else_it_reads() -> None:
    entry = zoo.ENTRIES["bert"]
    args, kwargs = entry.args(2, 8)
    one, other = entry.module(seed=0), entry.module(seed=1)
    a, b = (suture.trace(m, args, kwargs, dynamic=entry.dynamic) for m in (one, other))
    joined = join(a, stack_at(a).blocks[0].output, b, stack_at(b).blocks[1].entry, prefixes=("one.", "other."))
    verify(joined)
    assert [value.name for value in joined.inputs] == ["input_ids", "attention_mask"]
    mixed = copy.deepcopy(one)
    mixed.encoder.layer[1] = other.encoder.layer[1]
    mixed.pooler = other.pooler
    expected = mixed(**kwargs)
    received = suture.to_torch(joined)(**kwargs)
    assert torch.equal(received["last_hidden_state"], expected["last_hidden_state"])
    assert torch.equal(received["pooler_output"], expected["pooler_output"])


def test_types_are_checked_at_the_seam_before_anything_is_touched() -> None:
    graph = _graph(_net())
    before = str(graph)
    wide = extract(at_path(_graph(_Net(2, 10)), "layers.1"))
    with pytest.raises(suture.SutureError, match=r"S111.*layers.1 takes.*10.*is given"):
        replace(at_path(graph, "layers.2"), wide)
    with pytest.raises(suture.SutureError, match=r"S111"):
        insert(at_path(graph, "layers.2").output, wide)
    with pytest.raises(suture.SutureError, match=r"S111.*layers.0 takes f32\[batch, 4\] and gives f32\[batch, 6\]"):
        remove(at_path(graph, "layers.0"))
    with pytest.raises(suture.SutureError, match=r"S455.*block 3 of 3"):
        arrange(stack_at(graph), [0, 3])
    with pytest.raises(suture.SutureError, match=r"S455"):
        repeat(stack_at(graph), 0)
    with pytest.raises(suture.SutureError, match=r"S111"):
        rearrange(stack_at(graph), [(wide, 0)])
    assert str(graph) == before


def test_a_fixed_batch_does_not_fit_a_symbolic_one() -> None:
    graph = _graph(_net())
    fixed = extract(at_path(suture.trace(_net(seed=1), torch.zeros(2, 4)), "layers.1"))
    with pytest.raises(suture.SutureError, match=r"S111.*f32\[2, 6\].*f32\[batch, 6\].*same sizes"):
        insert(at_path(graph, "layers.1").output, fixed)


def test_symbols_of_a_piece_take_the_targets_sizes() -> None:
    graph = suture.trace(_net(), torch.zeros(2, 4), dynamic=[{0: "rows"}])
    piece = extract(at_path(_graph(_net(seed=1)), "layers.1"))
    value = insert(at_path(graph, "layers.1").output, piece)
    assert str(value.type) == "f32[rows, 6]"
    verify(graph)


def test_encoder_and_decoder_stacks_grow_apart() -> None:
    entry = zoo.ENTRIES["t5"]
    args, kwargs = entry.args(2, 8)
    module = entry.module()
    graph = suture.trace(module, args, kwargs, dynamic=entry.dynamic)
    arrange(stack_at(graph, "decoder.block"), [0, 1, 1])
    verify(graph)
    import transformers

    larger = transformers.T5ForConditionalGeneration(
        transformers.T5Config(**{**module.config.to_dict(), "num_decoder_layers": 3})
    ).eval()
    larger.load_state_dict(suture.to_torch(graph).state_dict())
    expected = larger(**kwargs)
    received = suture.to_torch(graph)(**kwargs)
    assert torch.allclose(received["logits"], expected["logits"], atol=1e-5)


def test_a_region_with_several_outputs_has_no_single_one() -> None:
    graph = _graph(_net())
    region = at_path(graph, "layers.1.norm")
    assert region.output.name in {value.name for value in region.outputs}
    entry = zoo.ENTRIES["unet"]
    args, kwargs = entry.args(2)
    unet = suture.trace(entry.module(), args, kwargs)
    with pytest.raises(suture.SutureError, match=r"S109.*outputs"):
        _ = at_path(unet, "down").output


def test_a_region_that_reads_nothing_has_no_stream() -> None:
    entry = zoo.ENTRIES["llama"]
    args, kwargs = entry.args(2, 8)
    graph = suture.trace(entry.module(), args, kwargs, dynamic=entry.dynamic)
    rotary = at_path(graph, "model.rotary_emb")
    frequencies = Region(graph, [node for node in graph.nodes if node.operator.name == "arange"][:1], "positions")
    assert rotary.stream is not None
    assert frequencies.stream is None
    with pytest.raises(suture.SutureError, match=r"S109.*nothing flows into"):
        _ = frequencies.entry


class _SharedNorms(_Net):
    """All blocks have one norm; the stem's output goes through it too if `outside`."""

    def __init__(self, depth: int = 3, *, outside: bool = False) -> None:
        super().__init__(depth)
        for block in self.layers[2:-1]:
            block.norm = self.layers[1].norm
        self.outside = outside

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layers[0](x)
        if self.outside:
            x = self.layers[1].norm(x)
        return self.layers[1:](x)


@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("order", [(0, 1, 2), (0, 1, 2, 0, 1, 2), (2, 0), (1,)])
def test_what_blocks_share_stays_shared(order: tuple[int, ...], outside: bool) -> None:
    torch.manual_seed(0)
    module = zoo.randomise(_SharedNorms(outside=outside).eval())
    graph = _graph(module)
    arrange(stack_at(graph), order)
    stem, *blocks, head = module.layers
    start = module.layers[1].norm(stem(X)) if outside else stem(X)
    assert torch.equal(_run(graph), nn.Sequential(*[blocks[index] for index in order], head)(start))
    larger = _SharedNorms(len(order), outside=outside).eval()
    larger.load_state_dict(suture.to_torch(graph).state_dict())
    assert torch.equal(larger(X), _run(graph))
    assert graph.stats().parameters == sum(p.numel() for p in larger.parameters())


def test_one_block_looped_stays_one() -> None:
    module = _net()
    for block in (2, 3):
        module.layers[block] = module.layers[1]
    graph = _graph(module)
    before = graph.stats().parameters
    repeat(stack_at(graph), 2)
    assert graph.stats().parameters == before
    assert torch.equal(_run(graph), nn.Sequential(module.layers[0], *[module.layers[1]] * 6, module.layers[4])(X))
