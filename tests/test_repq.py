"""RepQ: the formulas against numpy, integers before and after the re-parameterisation, and the whole pass on small transformers."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import suture
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph, Node
from suture.ir.operators.quantise_log import log2_dequantise, log2_quantise
from suture.ir.semantics import evaluate
from suture.passes.contract import deviation
from suture.passes.repq.attention import write_out
from suture.passes.repq.clipping import dual_clipping
from suture.passes.repq.norm_sites import norm_sites
from suture.passes.repq.ranges import channel_quantisers, channels_of, log2_scale, percentile_quantiser
from suture.passes.repq.rebuilding import moments_of, rebuilt_bias, rebuilt_weight
from suture.passes.repq.reparameterise import reparameterise, shared


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class RMSNorm(nn.Module):
    """A norm without a shift."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, x.shape[-1:], self.weight, 1e-6)


class Block(nn.Module):
    """A pre-norm block whose norms have channels of very different ranges."""

    def __init__(
        self, width: int, heads: int, norm: type[nn.Module], *, causal: bool = False, packed: bool = True
    ) -> None:
        super().__init__()
        self.heads, self.causal, self.packed = heads, causal, packed
        self.norm1, self.norm2 = norm(width), norm(width)
        self.qkv = nn.Linear(width, 3 * width) if packed else None
        if not packed:
            self.q, self.k, self.v = nn.Linear(width, width), nn.Linear(width, width // 2), nn.Linear(width, width // 2)
        self.proj = nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width, bias=packed), nn.Linear(2 * width, width)
        for each in (self.norm1, self.norm2):
            each.weight.data = torch.logspace(-1, 1, width)[torch.randperm(width)]
            if hasattr(each, "bias"):
                each.bias.data = torch.randn(width) * each.weight.data

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, c = x.shape
        y = self.norm1(x)
        if self.qkv is not None:
            q, k, v = self.qkv(y).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q = self.q(y).reshape(b, n, self.heads, -1).transpose(1, 2)
            k, v = (part(y).reshape(b, n, self.heads // 2, -1).transpose(1, 2) for part in (self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal, enable_gqa=not self.packed)
        x = x + self.proj(mixed.transpose(1, 2).reshape(b, n, c))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Small(nn.Module):
    """A patch layer, two blocks, a norm and a head."""

    def __init__(self, norm: type[nn.Module] = nn.LayerNorm, *, causal: bool = False, packed: bool = True) -> None:
        super().__init__()
        self.patch = nn.Linear(12, 16)
        self.blocks = nn.ModuleList([Block(16, 4, norm, causal=causal, packed=packed) for _ in range(2)])
        self.norm, self.head = norm(16), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


PLAIN = {"clip": False, "rebuild": False}  # what costs most, where it does not matter
VARIANTS = {
    "layer norm": {},
    "RMS norm, grouped heads, causal": {"norm": RMSNorm, "causal": True, "packed": False},
}


def small(dtype: torch.dtype = torch.float32, **options: object) -> tuple[Graph, torch.Tensor, nn.Module]:
    """A traced transformer, what it was traced on, and its module; tests do not change them."""
    return _small(dtype, tuple(options.items()))


@functools.cache
def _small(dtype: torch.dtype, chosen: tuple[tuple[str, object], ...]) -> tuple[Graph, torch.Tensor, nn.Module]:
    options = dict(chosen)
    torch.manual_seed(0)
    x = torch.randn(8, 6, 12, dtype=dtype)
    module = Small(**options).eval().to(dtype)  # type: ignore[arg-type]
    return suture.trace(module, x), x, module


def samples(count: int = 64, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return {"x": random(count, 6, 12, seed=3).to(dtype)}


def watched(graph: Graph, x: torch.Tensor) -> dict[str, torch.Tensor]:
    seen: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        evaluate(graph, [x], watch=lambda value, tensor: seen.__setitem__(value.name, tensor))
    return seen


def norms(graph: Graph) -> list[Node]:
    return [node for node in graph.nodes if node.operator.name in ("layer_norm", "rms_norm")]


# logarithms


@settings(max_examples=40)
@given(bits=st.integers(2, 8), seed=st.integers(0, 10**6), scale=st.floats(1e-3, 10))
def test_powers_of_the_root_of_two_are_powers_of_two_with_a_scale_by_parity(bits: int, seed: int, scale: float) -> None:
    x = torch.softmax(3 * random(4, 9, seed=seed), -1) * scale
    s = torch.tensor(scale, dtype=torch.float64)
    q = log2_quantise(x, s, bits=bits)
    last = 2**bits - 1
    expected = np.clip(np.round(-2 * np.log2(x.numpy() / scale)), 0, last)
    np.testing.assert_array_equal(q, expected)
    direct = np.where(expected == last, 0.0, scale * 2.0 ** (-expected / 2))
    odd = expected % 2
    parity = scale * 2.0 ** -np.ceil(expected / 2) * (1 + odd * (np.sqrt(2) - 1)) * (expected != last)
    np.testing.assert_allclose(direct, parity, rtol=1e-12, atol=0)
    np.testing.assert_allclose(log2_dequantise(q, s, bits=bits), parity, rtol=1e-12, atol=0)


def test_logarithms_of_what_has_none_are_the_last_integer() -> None:
    x = torch.tensor([0.0, -1.0, torch.nan, torch.inf, 1.0, 1e-30])
    assert log2_quantise(x, torch.tensor(1.0), bits=4).tolist() == [15, 15, 15, 0, 0, 15]
    one = log2_quantise(torch.tensor([1.0, 0.5, 0.25, 0.2]), torch.tensor(1.0), bits=4, steps=1)
    assert one.tolist() == [0, 1, 2, 2]
    assert log2_dequantise(one, torch.tensor(1.0), bits=4, steps=1).tolist() == [1.0, 0.5, 0.25, 0.25]


def test_logarithms_round_straight_through_in_training() -> None:
    graph, x, _ = small()
    made = suture.passes.repq(graph, data={"x": x}, activation_bits=4, weight_bits=8, softmax="log2", **PLAIN)
    module = suture.to_torch(made)
    torch.testing.assert_close(module(x), evaluate(made, [x])[0], atol=1e-5, rtol=1e-5)
    module(x).square().sum().backward()
    gradients = {name: p.grad for name, p in module.named_parameters() if p.requires_grad and p.grad is not None}
    assert any("qkv" in name for name in gradients)
    assert all(bool(grad.isfinite().all()) for grad in gradients.values())


def test_a_logarithm_that_cannot_be_is_refused() -> None:
    graph = Graph("one")
    x = graph.add_input("x", suture.ir.types.TensorType(torch.float32, (3,)))
    scale = graph.add_parameter("s", torch.ones(()))
    for attributes, code in (({"bits": 1}, Code.QUANTISER), ({"bits": 4, "steps": 3}, Code.QUANTISER)):
        with pytest.raises(SutureError) as caught:
            graph.add("log2_quantise", [x, scale], attributes)
        assert caught.value.code is code


# ranges


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_the_percentile_of_least_error_is_taken(bits: int) -> None:
    values = random(1, 5000)[0]
    values[:3] = torch.tensor([40.0, -35.0, 30.0])
    candidates = [(values.min(), values.max())] + [
        (np.quantile(values, 1 - share), np.quantile(values, share)) for share in (0.999, 0.9999, 0.99999)
    ]
    errors = []
    for low, high in candidates:
        scale = np.float64(np.float32((float(high) - float(low)) / (2**bits - 1)))
        zero = np.round(-float(low) / scale)
        rounded = (np.clip(np.round(values.numpy() / scale) + zero, 0, 2**bits - 1) - zero) * scale
        errors.append(((rounded - values.numpy()) ** 2).sum())
    made = percentile_quantiser(values, bits)
    assert float((made.round_trip(values) - values).square().sum()) == pytest.approx(min(errors), rel=1e-6)


def test_each_channel_has_the_quantiser_that_it_would_have_alone() -> None:
    rows = random(6, 400) * torch.logspace(-1, 1, 6, dtype=torch.float64)[:, None] + random(6, 1, seed=1)
    together = channel_quantisers(rows, 4)
    for k in range(6):
        alone = channel_quantisers(rows[k : k + 1], 4)
        assert float(alone.scale) == float(together.scale[k]) and float(alone.zero) == float(together.zero[k])


@pytest.mark.parametrize("bits", [3, 4])
def test_dual_clipping_is_never_worse_and_cuts_the_side_that_has_outliers(bits: int) -> None:
    rows = random(8, 600)
    rows[:, ::100] = 12.0  # on the upper side alone
    weight = random(10, 8, seed=2)
    gram = weight.T @ weight
    start = channels_of(rows.amin(1), rows.amax(1), bits)
    made = dual_clipping(rows, gram, start)

    def loss(quantiser: object) -> float:
        rounded = quantiser.numbers(quantiser.integers(rows.T))  # type: ignore[attr-defined]
        return float(((rounded - rows.T) @ weight.T).square().sum())

    assert loss(made) < 0.95 * loss(start)
    upper = (2**bits - 1 - made.zero) * made.scale
    assert float(upper.mean()) < 11.7


def test_constant_channels_and_empty_data_have_quantisers() -> None:
    rows = torch.zeros(3, 10, dtype=torch.float64)
    rows[1] = 2.5
    made = channel_quantisers(rows, 4)
    assert bool((made.scale > 0).all()) and bool(made.scale.isfinite().all())
    assert percentile_quantiser(torch.zeros(0), 4).scale > 0
    assert log2_scale(torch.zeros(5), 4) > 0


# the re-parameterisation


def test_the_formulas_are_those_of_the_paper() -> None:
    quantiser = channels_of(random(5, seed=1) - 3, random(5, seed=2) + 3, 4)
    s, z = quantiser.scale.numpy(), quantiser.zero.numpy()
    made = shared(quantiser)
    assert made.scale == pytest.approx(s.mean(), rel=1e-7) and made.zero == round(z.mean())
    np.testing.assert_allclose(made.factor, s / made.scale)
    np.testing.assert_allclose(made.shift, s * (z - made.zero))
    weight, bias, y = random(4, 5).numpy(), random(4).numpy(), random(7, 5, seed=3).numpy()
    moved = (y + made.shift.numpy()) / made.factor.numpy()
    np.testing.assert_allclose(
        moved @ (weight * made.factor.numpy()).T + bias - weight @ made.shift.numpy(), y @ weight.T + bias, atol=1e-12
    )


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("bits", [4, 6, 8])
def test_integers_are_equal_before_and_after_at_every_site(options: dict[str, object], bits: int) -> None:
    graph, x, _ = small(torch.float64, **options)
    before = watched(graph, x)
    changed = graph.copy()
    found = norm_sites(changed, dict.fromkeys(changed.values()), lambda text: None)
    assert len(found) == len(norms(graph)) == 5
    names = [site.norm.output.name for site in found]
    quantisers = [
        channel_quantisers(site.rows([before[name]]), bits, symmetric=site.symmetric)
        for site, name in zip(found, names, strict=True)
    ]
    made = [reparameterise(changed, site.norm, quantiser)[0] for site, quantiser in zip(found, quantisers, strict=True)]
    after = watched(changed, x)
    for site, name, quantiser, each in zip(found, names, quantisers, made, strict=True):
        integers = quantiser.integers(before[name])
        assert len(integers.unique()) > 2 ** (bits - 1)
        assert torch.equal(integers, each.integers(after[site.norm.output.name]))
        own = each.quantiser().quantise(after[site.norm.output.name]).long()
        assert torch.equal(integers, own)
    expected, received = evaluate(graph, [x])[0], evaluate(changed, [x])[0]
    assert deviation(expected, received) < 1e-10


def test_a_norm_with_another_reader_keeps_one_quantiser_and_says_why() -> None:
    class Post(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.norm(x)
            return y + self.down(F.relu(self.up(y)))

    torch.manual_seed(0)
    x = torch.randn(4, 6, 16)
    graph = suture.trace(Post().eval(), x)
    made = suture.passes.repq(graph, data={"x": x})
    notes = made.history[-1].notes
    assert any(note.startswith("norm has one quantiser for all channels") for note in notes)
    assert any("no norm has linear readers alone" in note for note in notes)


# attention


@pytest.mark.parametrize(("causal", "mask"), [(False, None), (False, "bool"), (False, "float"), (True, None)])
@pytest.mark.parametrize("grouped", [False, True])
def test_attention_written_out_is_attention(causal: bool, grouped: bool, mask: str | None) -> None:
    graph = Graph("one")
    kind = suture.ir.types.TensorType
    shapes = [(2, 4, 5, 8), (2, 2 if grouped else 4, 7, 8), (2, 2 if grouped else 4, 7, 6)]
    values = [graph.add_input(f"x{k}", kind(torch.float64, shape)) for k, shape in enumerate(shapes)]
    tensors = [random(*shape, seed=k) for k, shape in enumerate(shapes)]
    if mask is not None:
        tensor = random(2, 1, 5, 7, seed=9) if mask == "float" else random(2, 1, 5, 7, seed=9) > -0.5
        values.append(graph.add_input("mask", kind(tensor.dtype, tuple(tensor.shape))))
        tensors.append(tensor)
    node = graph.add("attention", values, {"causal": causal, "scale": 0.3, "grouped": grouped})
    graph.set_outputs(node.outputs)
    expected = F.scaled_dot_product_attention(*tensors, is_causal=causal, scale=0.3, enable_gqa=grouped)
    assert write_out(graph, node) is not None
    assert all(node.operator.name != "attention" for node in graph.nodes)
    torch.testing.assert_close(evaluate(graph, tensors)[0], expected)


# rebuilt weights


def test_a_rebuilt_weight_is_the_least_squares_solution() -> None:
    graph = Graph("one")
    x = graph.add_input("x", suture.ir.types.TensorType(torch.float64, (50, 6)))
    weight, bias = graph.add_parameter("w", random(4, 6)), graph.add_parameter("b", random(4))
    graph.set_outputs(graph.add("linear", [x, weight, bias]).outputs)
    (use,) = weight.uses
    real, rounded = random(50, 6, seed=1), random(50, 6, seed=1) + 0.3 * random(50, 6, seed=2) + 0.2
    found = moments_of(use, [real], use, [rounded], centred=True)
    made = rebuilt_weight(weight.data, found, 1e-12)
    shift = rebuilt_bias(weight.data, made, bias.data, found)
    target = (real @ weight.data.T + bias.data).numpy()
    solution = np.linalg.lstsq(np.hstack([rounded.numpy(), np.ones((50, 1))]), target, rcond=None)[0]
    np.testing.assert_allclose(made, solution[:-1].T, atol=1e-7)
    np.testing.assert_allclose(shift, solution[-1], atol=1e-7)


# the pass


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_everything_that_is_multiplied_is_integers(options: dict[str, object]) -> None:
    graph, _, _ = small(**options)
    made = suture.passes.repq(graph, data=samples(), weight_bits=6, activation_bits=6, softmax="log2")
    for node in made.nodes:
        if node.operator.name not in ("linear", "matmul"):
            continue
        for value in node.inputs[:2]:
            while value.producer.operator.name in ("permute", "reshape", "repeat_interleave"):
                value = value.producer.inputs[0]
            assert value.producer.operator.name in ("dequantise", "log2_dequantise"), node.where()
    bits = {node.path: node.attributes["bits"] for node in made.nodes if node.operator.name == "dequantise"}
    assert bits["patch"] == bits["head"] == 8 and bits["blocks.0.fc1"] == 6
    assert sum(node.operator.name == "log2_quantise" for node in made.nodes) == 2
    assert made.history[-1].deviation < 0.3


def test_more_of_the_method_loses_less() -> None:
    graph, _, _ = small()
    fresh = torch.randn(8, 6, 12, generator=torch.Generator().manual_seed(5))
    expected = evaluate(graph, [fresh])[0]
    losses = {}
    for name, options in {
        "plain": {"reparameterise": False, "clip": False, "rebuild": False},
        "shared": {"clip": False, "rebuild": False},
        "clipped": {"rebuild": False},
        "all": {},
    }.items():
        made = suture.passes.repq(graph, data=samples(), weight_bits=4, activation_bits=4, check=False, **options)
        losses[name] = float((evaluate(made, [fresh])[0] - expected).detach().square().mean())
    assert losses["clipped"] < losses["shared"] < losses["plain"]
    assert losses["all"] < losses["plain"]


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_eight_bits_run_in_onnx_runtime_as_in_the_evaluator(options: dict[str, object], tmp_path: Path) -> None:
    graph, x, module = small(**options)
    made = suture.passes.repq(graph, data={"x": x})
    path = tmp_path / "int8.onnx"
    suture.export_onnx(made, path, opset=17)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} == {""}
    names = [node.op_type for node in model.graph.node]
    assert names.count("QuantizeLinear") >= 10 and "Attention" not in names
    chosen = onnxruntime.SessionOptions()
    chosen.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, chosen, providers=["CPUExecutionProvider"])
    received = torch.from_numpy(session.run(None, {"x": x.numpy()})[0])
    expected = evaluate(made, [x])[0].detach()
    assert deviation(expected, received) < 0.02  # an integer that falls on the other side of a half here and there
    assert deviation(module(x).detach(), expected) < 0.1


def test_logarithms_have_no_onnx_and_the_error_says_what_has(tmp_path: Path) -> None:
    graph, x, _ = small()
    made = suture.passes.repq(graph, data={"x": x}, softmax="log2", **PLAIN)
    with pytest.raises(SutureError, match="uniform") as caught:
        suture.export_onnx(made, tmp_path / "log.onnx")
    assert caught.value.code is Code.ONNX_EXPORT and not list(tmp_path.iterdir())


def test_the_text_reads_back_and_the_same_comes_out_twice() -> None:
    graph, x, _ = small()
    options = {"data": {"x": x}, "weight_bits": 4, "activation_bits": 4, "softmax": "log2"}
    made, again = suture.passes.repq(graph, **options), suture.passes.repq(graph, **options)
    assert str(made) == str(again) == str(suture.ir.text.parse_graph(str(made)))
    assert all(torch.equal(p.data, again.parameters[name].data) for name, p in made.parameters.items())


def test_modules_that_are_excluded_stay_real() -> None:
    graph, x, _ = small()
    made = suture.passes.repq(graph, data={"x": x}, exclude=("blocks.1*", "head"), **PLAIN)
    assert {"head.weight", "blocks.1.qkv.weight"} <= set(made.parameters)
    assert "blocks.0.qkv.weight" not in made.parameters
    assert sum(node.operator.name == "attention" for node in made.nodes) == 1
    with pytest.raises(SutureError) as caught:
        suture.passes.repq(graph, data={"x": x}, exclude=("haed",))
    assert caught.value.code is Code.SITE and "head" in str(caught.value)


def test_a_tied_weight_stays_one() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.layer, self.head = nn.LayerNorm(16), nn.Linear(16, 16), nn.Linear(16, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.layer(F.relu(self.layer(self.norm(x)))))

    torch.manual_seed(0)
    x = torch.randn(4, 6, 16)
    graph = suture.trace(Tied().eval(), x)
    made = suture.passes.repq(graph, data={"x": x}, weight_bits=6, activation_bits=6)
    assert made.history[-1].deviation < 0.2
    torch.testing.assert_close(suture.to_torch(made)(x), evaluate(made, [x])[0])


def test_half_precision_and_float64_keep_their_types() -> None:
    for dtype in (torch.float16, torch.float64):
        graph, x, _ = small(dtype)
        made = suture.passes.repq(graph, data=samples(dtype=dtype))
        assert evaluate(made, [x])[0].dtype == dtype
        assert made.history[-1].deviation < 0.15


def test_a_graph_without_numbers_is_planned() -> None:
    graph, x, _ = small()
    bare = graph.copy()
    for parameter in bare.parameters.values():
        parameter.assign(parameter.data.to("meta"))
    for options in ({}, {"softmax": "log2", "weight_bits": 4, "activation_bits": 4}):
        planned, done = (
            suture.passes.repq(bare, **options),
            suture.passes.repq(graph, data={"x": x}, **PLAIN, **options),
        )
        assert {n: p.type for n, p in planned.parameters.items()} == {n: p.type for n, p in done.parameters.items()}
        assert [node.operator.name for node in planned.nodes] == [node.operator.name for node in done.nodes]


def test_a_graph_of_no_products_is_left_alone() -> None:
    graph = suture.trace(nn.ReLU(), torch.randn(2, 3))
    made = suture.passes.repq(graph, data={"input": torch.randn(2, 3)})
    assert made.history[-1].outcome == "not applicable" and "sums products" in made.history[-1].notes[-1]


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"weight_bits": 1}, Code.QUANTISER),
        ({"activation_bits": 9}, Code.QUANTISER),
        ({"edge_bits": 0}, Code.QUANTISER),
        ({"data": None}, Code.CALIBRATION),
        ({"data": {}}, Code.CALIBRATION),
        ({"data": {"y": torch.zeros(8, 6, 12)}}, Code.CALIBRATION),
        ({"data": {"x": torch.zeros(8, 6, 11)}}, Code.INPUT),
        ({"softmax": "sqrt"}, Code.OPTION),
        ({"damping": -1.0}, Code.OPTION),
    ],
    ids=str,
)
def test_what_cannot_be_is_one_line(options: dict[str, object], code: Code) -> None:
    graph, x, _ = small()
    with pytest.raises(SutureError) as caught:
        suture.passes.repq(graph, **({"data": {"x": x}} | options))
    assert caught.value.code is code
    assert "\n" not in str(caught.value)


def test_silent_data_and_weights_that_are_no_numbers() -> None:
    graph, x, _ = small()
    made = suture.passes.repq(graph, data={"x": torch.zeros_like(x)})
    assert bool(evaluate(made, [x])[0].isfinite().all())
    broken = graph.copy()
    broken.parameters["blocks.0.fc2.weight"].assign(torch.full((16, 32), torch.nan))
    with pytest.raises(SutureError) as caught:
        suture.passes.repq(broken, data={"x": x})
    assert caught.value.code in (Code.QUANTISER, Code.CALIBRATION)
