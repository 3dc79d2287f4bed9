"""The axes of small programs: what must change together, what is pinned, and that no hint is ever needed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import zoo
from programs import Program, shuffle
from torch import nn

import suture
from suture.ir.algebra import Atom, Axis, Chain, Times, atoms_of, size_of
from suture.ir.axes import AxisTable


def table_of(module: nn.Module, *inputs: torch.Tensor) -> AxisTable:
    return suture.trace(module.eval(), inputs).axes()


def axis(table: AxisTable, name: str, dim: int) -> Axis:
    return table.axis(table.graph.parameters[name], dim)


def shape_of(expression: Axis) -> str:
    """An axis with its atoms numbered by first appearance and their sizes: `a3*b4|a3`."""
    names: dict[Atom, str] = {}

    def text(part: Axis) -> str:
        match part:
            case Atom():
                names.setdefault(part, chr(ord("a") + len(names)))
                return f"{names[part]}{part.size}"
            case Times(factors):
                return "*".join(f"({text(f)})" if isinstance(f, Chain) else text(f) for f in factors) or "1"
            case Chain(parts):
                return "|".join(text(p) for p in parts)

    return text(expression)


def free(expression: Axis) -> bool:
    return all(atom.pin is None for atom in atoms_of(expression))


def pin_of(expression: Axis) -> str:
    return "; ".join(str(atom.pin) for atom in atoms_of(expression) if atom.pin is not None)


IMAGE = torch.randn(2, 3, 8, 8)


def test_conv_norm_relu_conv_share_one_atom() -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3))
    table = table_of(net, IMAGE)
    atom = axis(table, "0.weight", 0)
    assert isinstance(atom, Atom) and free(atom)
    for name, dim in (
        ("0.bias", 0),
        ("1.weight", 0),
        ("1.bias", 0),
        ("1.running_mean", 0),
        ("1.running_var", 0),
        ("3.weight", 1),
    ):
        assert axis(table, name, dim) is atom
    assert "input x" in pin_of(axis(table, "0.weight", 1)) or "input" in pin_of(axis(table, "0.weight", 1))
    assert "output" in pin_of(axis(table, "3.weight", 0))


def test_residual_stage_is_one_atom() -> None:
    entry = zoo.ENTRIES["resnet50"]
    graph = suture.trace(entry.module(), entry.args()[0], dynamic=entry.dynamic)
    table = graph.axes()
    stream = axis(table, "layer1.0.conv3.weight", 0)
    assert isinstance(stream, Atom) and free(stream)
    for name, dim in (
        ("layer1.0.downsample.0.weight", 0),
        ("layer1.1.conv3.weight", 0),
        ("layer1.2.conv1.weight", 1),
        ("layer2.0.conv1.weight", 1),
    ):
        assert axis(table, name, dim) is stream


def test_grouped_convolution_cuts_evenly() -> None:
    net = nn.Sequential(nn.Conv2d(3, 32, 1), nn.Conv2d(32, 64, 3, groups=4), nn.Conv2d(64, 5, 1))
    table = table_of(net, IMAGE)
    assert shape_of(axis(table, "0.weight", 0)) == "a4*b8"
    assert shape_of(axis(table, "1.weight", 0)) == "a4*b16"
    assert axis(table, "1.weight", 1) is axis(table, "0.weight", 0).factors[1]
    assert axis(table, "1.weight", 0).factors[0] is axis(table, "0.weight", 0).factors[0]
    assert axis(table, "2.weight", 1) == axis(table, "1.weight", 0)


def test_depthwise_is_free_on_its_channels() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 5, 1))
    table = table_of(net, IMAGE)
    assert axis(table, "1.weight", 0) is axis(table, "0.weight", 0) is axis(table, "2.weight", 1)
    assert free(axis(table, "1.weight", 0))


def test_flatten_keeps_channels_and_pins_space() -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Flatten(), nn.Linear(6 * 64, 5))
    table = table_of(net, IMAGE)
    columns = axis(table, "2.weight", 1)
    assert shape_of(columns) == "a6*b8*c8"
    assert columns.factors[0] is axis(table, "0.weight", 0) and free(columns.factors[0])
    assert "order matters" in pin_of(columns.factors[1])


def test_nhwc_flatten_has_channels_innermost() -> None:
    net = Program(
        lambda m, x: m.fc(m.conv(x).permute(0, 2, 3, 1).flatten(1)),
        conv=nn.Conv2d(3, 6, 3, padding=1),
        fc=nn.Linear(6 * 64, 5),
    )
    table = table_of(net, IMAGE)
    columns = axis(table, "fc.weight", 1)
    assert shape_of(columns) == "a8*b8*c6" and columns.factors[2] is axis(table, "conv.weight", 0)


def test_concatenation_keeps_parts_apart() -> None:
    net = Program(
        lambda m, x: m.c(torch.cat([m.a(x), m.b(x)], 1)),
        a=nn.Conv2d(3, 4, 1),
        b=nn.Conv2d(3, 6, 1),
        c=nn.Conv2d(10, 5, 1),
    )
    table = table_of(net, IMAGE)
    assert shape_of(axis(table, "c.weight", 1)) == "a4|b6"
    assert axis(table, "c.weight", 1).parts == (axis(table, "a.weight", 0), axis(table, "b.weight", 0))


def test_dense_block_grows_and_the_norm_reads_the_whole() -> None:
    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 1)
            self.layers = nn.ModuleList([nn.Conv2d(4 + 3 * k, 3, 1) for k in range(3)])
            self.norm = nn.BatchNorm2d(13)
            self.head = nn.Conv2d(13, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            for layer in self.layers:
                x = torch.cat([x, layer(x)], 1)
            return self.head(self.norm(x))

    table = table_of(Dense(), IMAGE)
    assert shape_of(axis(table, "norm.weight", 0)) == "a4|b3|c3|d3"
    assert axis(table, "layers.2.weight", 1).parts == axis(table, "norm.weight", 0).parts[:3]


def test_slices_cut_the_channel_axis() -> None:
    net = Program(
        lambda m, x: m.b((y := m.a(x))[:, :8]) + m.c(y[:, 8:]),
        a=nn.Conv2d(3, 12, 1),
        b=nn.Conv2d(8, 5, 1),
        c=nn.Conv2d(4, 5, 1),
    )
    table = table_of(net, IMAGE)
    assert shape_of(axis(table, "a.weight", 0)) == "a8|b4"
    assert axis(table, "a.weight", 0).parts[0] is axis(table, "b.weight", 1)
    assert free(axis(table, "a.weight", 0))


def test_channel_shuffle_cuts_inside_factors() -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        x = shuffle(torch.cat([m.a(x), m.b(x)], 1))
        for layer in m.layers:
            left, right = x.chunk(2, 1)
            x = shuffle(torch.cat([left, layer(right)], 1))
        return m.head(x)

    net = Program(
        forward,
        a=nn.Conv2d(3, 58, 1),
        b=nn.Conv2d(3, 58, 1),
        layers=nn.ModuleList([nn.Conv2d(58, 58, 1) for _ in range(3)]),
        head=nn.Conv2d(116, 5, 1),
    )
    table = table_of(net, IMAGE)
    first = axis(table, "a.weight", 0)
    assert first == axis(table, "b.weight", 0)
    assert size_of(first) == 58 and any(atom.pin is None and atom.size > 1 for atom in atoms_of(first))
    # the second layer's half cuts the 29 rows of pairs in the middle of one
    assert {size_of(part) for part in first.parts} >= {29, 14}


def test_pixel_shuffle_frees_only_the_outer_factor() -> None:
    net = nn.Sequential(nn.Conv2d(3, 16, 1), nn.PixelShuffle(2), nn.Conv2d(4, 5, 3))
    table = table_of(net, IMAGE)
    channels = axis(table, "0.weight", 0)
    assert shape_of(channels) == "a4*b2*c2" and channels.factors[0] is axis(table, "2.weight", 1)
    assert free(channels.factors[0]) and not free(channels.factors[1]) and not free(channels.factors[2])


def test_packed_qkv_needs_no_head_count() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.qkv, self.out = nn.Linear(7, 24), nn.Linear(24, 72), nn.Linear(24, 24)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            b, n, _ = x.shape
            q, k, v = self.qkv(self.embed(x)).reshape(b, n, 3, 4, 6).permute(2, 0, 3, 1, 4).unbind(0)
            y = F.scaled_dot_product_attention(q, k, v)
            return self.out(y.transpose(1, 2).reshape(b, n, 24))

    table = table_of(Attention(), torch.randn(2, 5, 7))
    assert shape_of(axis(table, "qkv.weight", 0)) == "a4*b6|a4*b6|a4*c6"
    values = axis(table, "qkv.weight", 0).parts[2]
    assert axis(table, "out.weight", 1) == values and free(axis(table, "qkv.weight", 0))


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_grouped_query_attention_with_rotary_halves(name: str) -> None:
    entry = zoo.ENTRIES[name]
    graph = suture.trace(entry.module(), kwargs=entry.args()[1], dynamic=entry.dynamic)
    table = graph.axes()
    base = "model.layers.0.self_attn."
    key, value = axis(table, f"{base}k_proj.weight", 0), axis(table, f"{base}v_proj.weight", 0)
    query, out = axis(table, f"{base}q_proj.weight", 0), axis(table, f"{base}o_proj.weight", 1)
    assert shape_of(key) == "a2*(b4|b4)" and shape_of(query) == "a2*b2*(c4|c4)"
    assert shape_of(value) == "a2*b8" and shape_of(out) == "a2*b2*c8"
    assert query.factors[0] is key.factors[0] is value.factors[0] is out.factors[0]
    assert query.factors[1] is out.factors[1] and query.factors[2] == key.factors[1]
    assert axis(table, "model.rotary_emb.inv_freq", 0) is key.factors[1].parts[0]
    assert all(free(axis) for axis in (key, value, query, out))


def test_gpt2_weights_are_input_by_output() -> None:
    entry = zoo.ENTRIES["gpt2"]
    table = suture.trace(entry.module(), kwargs=entry.args()[1], dynamic=entry.dynamic).axes()
    assert axis(table, "transformer.h.0.mlp.c_fc.weight", 1) is axis(table, "transformer.h.0.mlp.c_proj.weight", 0)
    assert free(axis(table, "transformer.h.0.mlp.c_fc.weight", 1))


def test_tied_head_shares_the_stream_and_pins_the_vocabulary() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.block, self.head = nn.Embedding(11, 6), nn.Linear(6, 6), nn.Linear(6, 11, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            x = self.embed(tokens)
            return self.head(x + self.block(x))

    table = suture.trace(Tied().eval(), (torch.randint(0, 11, (2, 4)),)).axes()
    (name,) = [name for name, p in table.graph.parameters.items() if p.aliases]
    assert free(axis(table, name, 1)) and not free(axis(table, name, 0))
    assert axis(table, "block.weight", 0) is axis(table, "block.weight", 1) is axis(table, name, 1)


def test_group_norm_is_groups_of_channels() -> None:
    net = nn.Sequential(nn.Conv2d(3, 12, 1), nn.GroupNorm(3, 12), nn.Conv2d(12, 5, 1))
    table = table_of(net, IMAGE)
    assert shape_of(axis(table, "1.weight", 0)) == "a3*b4" and axis(table, "0.weight", 0) == axis(table, "1.weight", 0)


def test_patch_merging_of_strided_slices_shares_channels() -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        x = m.embed(x).permute(0, 2, 3, 1)
        parts = [x[:, i::2, j::2, :] for j in (0, 1) for i in (0, 1)]
        return m.reduce(torch.cat(parts, -1))

    net = Program(forward, embed=nn.Conv2d(3, 6, 1), reduce=nn.Linear(24, 5))
    table = table_of(net, IMAGE)
    columns = axis(table, "reduce.weight", 1)
    assert shape_of(columns) == "a6|a6|a6|a6" and columns.parts[0] is axis(table, "embed.weight", 0) and free(columns)


def test_swin_windows_pin_space_only() -> None:
    entry = zoo.ENTRIES["swin_tiny_patch4_window7_224"]
    table = suture.trace(entry.module(), entry.args(1)[0]).axes()
    merged = axis(table, "layers.1.downsample.reduction.weight", 1)
    assert size_of(merged) == 192 and shape_of(merged).endswith("48")
    assert free(axis(table, "layers.0.blocks.0.norm1.weight", 0))
    heads = axis(table, "layers.0.blocks.0.attn.qkv.weight", 0)
    assert shape_of(heads) == "a3*b16|a3*b16|a3*c16" and free(heads)
    assert axis(table, "layers.0.blocks.0.attn.relative_position_bias_table", 1) is heads.parts[0].factors[0]


def test_mixer_pins_tokens_and_frees_the_token_mixing_width() -> None:
    entry = zoo.ENTRIES["mixer_s32_224"]
    table = suture.trace(entry.module(), entry.args(1)[0]).axes()
    assert not free(axis(table, "blocks.0.mlp_tokens.fc1.weight", 1))
    assert free(axis(table, "blocks.0.mlp_tokens.fc1.weight", 0))
    assert axis(table, "blocks.0.mlp_tokens.fc1.weight", 0) is axis(table, "blocks.0.mlp_tokens.fc2.weight", 1)


def test_squeeze_and_excite_gates_the_same_channels() -> None:
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.down, self.up, self.head = (
                nn.Conv2d(3, 8, 1),
                nn.Conv2d(8, 2, 1),
                nn.Conv2d(2, 8, 1),
                nn.Conv2d(8, 5, 1),
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.conv(x)
            gate = torch.sigmoid(self.up(torch.relu(self.down(x.mean((2, 3), keepdim=True)))))
            return self.head(x * gate)

    table = table_of(Gate(), IMAGE)
    assert (
        axis(table, "conv.weight", 0)
        is axis(table, "up.weight", 0)
        is axis(table, "down.weight", 1)
        is axis(table, "head.weight", 1)
    )
    assert free(axis(table, "down.weight", 0))


def test_lstm_gates_and_directions() -> None:
    entry = zoo.ENTRIES["lstm"]
    table = suture.trace(entry.module(), entry.args()[0]).axes()
    gates = axis(table, "lstm.weight_ih_l0", 0)
    assert shape_of(gates) == "a4*b24" and not free(gates.factors[0])
    hidden = gates.factors[1]
    assert axis(table, "lstm.weight_hh_l0", 1) is hidden and free(hidden)
    assert axis(table, "lstm.weight_ih_l1", 1).parts == (hidden, hidden)
    assert axis(table, "head.weight", 1).parts == (hidden, hidden)


def test_opaque_operators_pin_what_they_touch() -> None:
    net = Program(lambda m, x: m.b(torch.fft.fft(m.a(x), dim=1).real), a=nn.Conv2d(3, 6, 1), b=nn.Conv2d(6, 5, 1))
    table = table_of(net, IMAGE)
    assert "opaque" in pin_of(axis(table, "a.weight", 0))


def test_a_pin_says_why() -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU())
    table = table_of(net, IMAGE)
    assert "reaches dimension 1 of output" in pin_of(axis(table, "0.weight", 0))
    assert "pinned: it reaches dimension 1" in str(table)


def test_the_table_reads_well() -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3))
    lines = str(table_of(net, IMAGE)).splitlines()
    assert lines[0].split() == ["axis", "size", "kind", "written", "by", "read", "by", "state"]
    (row,) = [line for line in lines if line.startswith("0.weight[0]")]
    assert row.split() == ["0.weight[0]", "6", "feature", "0", "2", "free"]


def test_analysis_is_near_linear_in_nodes() -> None:
    """Counted in atoms, not in seconds: twice the layers make twice the atoms."""

    def atoms(depth: int) -> int:
        net = nn.Sequential(*[nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.GELU()) for _ in range(depth)])
        return suture.trace(net, (torch.randn(2, 8),)).axes().algebra.count

    assert atoms(40) <= 2.1 * atoms(20)


def test_the_page_on_axes_shows_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[1] / "docs" / "axes.md").read_text(encoding="utf-8")
    program = page.split("```python\n")[1].split("```")[0]
    exec(program, {"torch": torch, "nn": nn, "F": F, "suture": suture})
    shown = [line[4:] for line in page.splitlines() if line.startswith("    ")]
    table = shown[shown.index(next(line for line in shown if line.startswith("axis  "))) :]
    assert capsys.readouterr().out.splitlines() == table
