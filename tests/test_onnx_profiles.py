"""Targets: what a profile may use, which choices it takes, and that every file runs at every optimisation level with other sizes than traced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import zoo
from torch import nn

import suture
from suture.backends.onnx import export_onnx, summarise_onnx
from suture.backends.onnx.profile import CONTRIB, PROFILES, Choices, find_profile
from suture.drivers.exporting import prepare
from suture.ir.bind_sizes import bind_sizes
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph
from suture.ir.semantics import evaluate
from suture.ir.text import parse_graph

LEVELS = ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL")


def run_at(path: Path, level: str, feed: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return [torch.from_numpy(item) for item in session.run(None, {name: item.numpy() for name, item in feed.items()})]


class Block(nn.Module):
    """A transformer block of packed heads, pre-norm, GELU."""

    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        made = self.qkv(self.norm1(x)).reshape(batch, length, 3, self.heads, width // self.heads)
        q, k, v = made.permute(2, 0, 3, 1, 4).unbind(0)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(y.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class Stack(nn.Module):
    def __init__(self, depth: int = 2) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*[Block() for _ in range(depth)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(x)[:, 0]


class Windows(nn.Module):
    """A shifted window of an image, attention in it by hand with a bias and a mask, and back again."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.proj = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)
        self.bias = nn.Parameter(torch.randn(2, 4, 4))
        self.register_buffer("mask", torch.randn(4, 4, 4).sign().clamp(max=0) * 100)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch = x.shape[0]
        y = torch.roll(self.norm(x), (-1, -1), (1, 2))
        y = y.reshape(batch, 2, 2, 2, 2, 8).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, 8)
        q, k, v = self.qkv(y).reshape(-1, 4, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q * 0.5) @ k.transpose(-2, -1) + self.bias.unsqueeze(0)
        scores = (scores.view(batch, 4, 2, 4, 4) + self.mask[None, :, None]).view(-1, 2, 4, 4)
        y = self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(-1, 4, 8))
        y = y.reshape(batch, 2, 2, 2, 2, 8).permute(0, 1, 3, 2, 4, 5).reshape(batch, 4, 4, 8)
        return x + torch.roll(y, (1, 1), (1, 2))


def stack(depth: int = 2) -> tuple[nn.Module, Graph]:
    torch.manual_seed(0)
    module = Stack(depth).eval()
    return module, suture.trace(module, torch.randn(2, 5, 16), dynamic={"x": {0: "batch", 1: "length"}})


def domains(path: Path) -> set[str]:
    return {node.domain for node in onnx.load(path).graph.node}


# every file, at every level


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("opset", [17, 20, 21, 23])
def test_a_file_runs_at_every_level_with_other_sizes_than_traced(profile: Any, opset: int, tmp_path: Path) -> None:
    module, graph = stack()
    sizes = {"batch": 3, "length": 7} if profile == "mobile" else {}
    prepared = prepare(graph, profile=profile)
    path = export_onnx(prepared, tmp_path / "m.onnx", opset=opset, profile=profile, sizes=sizes)
    onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True, check_type=True, data_prop=True)
    torch.manual_seed(1)
    x = torch.randn(3, 7, 16)
    for level in LEVELS:
        torch.testing.assert_close(run_at(path, level, {"x": x})[0], module(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("profile", PROFILES)
def test_shifted_windows_run_at_every_level(profile: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Windows().eval()
    graph = suture.trace(module, torch.randn(2, 4, 4, 8), dynamic={"x": {0: "batch"}})
    prepared = prepare(graph, profile=profile)
    sizes = {"batch": 3} if profile == "mobile" else {}
    path = export_onnx(prepared, tmp_path / "m.onnx", profile=profile, sizes=sizes)
    x = torch.randn(3, 4, 4, 8)
    for level in LEVELS:
        torch.testing.assert_close(run_at(path, level, {"x": x})[0], module(x), rtol=1e-5, atol=1e-5)
    assert not summarise_onnx(path).operators.get("Slice", 0)


_MODELS = ("mobilenetv3_large_100", "bert", "gpt2", "llama", "unet")


@pytest.mark.parametrize("name", _MODELS)
def test_a_prepared_model_computes_what_the_module_does(name: str, tmp_path: Path) -> None:
    entry = zoo.ENTRIES[name]
    module = zoo.randomise(entry.module())
    args, kwargs = entry.args(2, 12)
    graph = suture.trace(module, args, kwargs, dynamic=entry.dynamic)
    torch.manual_seed(1)
    args, kwargs = entry.args(3, 9)
    plain = summarise_onnx(export_onnx(graph, tmp_path / "plain.onnx"))
    path = export_onnx(prepare(graph, check=False), tmp_path / "model.onnx")
    assert sum(summarise_onnx(path).operators.values()) <= sum(plain.operators.values())
    assert suture.compare(module, path, kwargs or args).relative < 1e-5


# profiles


def test_portable_files_have_only_operators_of_onnx(tmp_path: Path) -> None:
    _, graph = stack()
    path = export_onnx(prepare(graph), tmp_path / "m.onnx")
    assert domains(path) == {""}
    assert [item.domain for item in onnx.load(path).opset_import] == [""]


def test_contributed_operators_import_their_domain(tmp_path: Path) -> None:
    graph = suture.trace(nn.SiLU(), torch.randn(2, 3))
    path = export_onnx(graph, tmp_path / "m.onnx", profile="onnxruntime")
    assert domains(path) == {CONTRIB}
    assert {item.domain: item.version for item in onnx.load(path).opset_import} == {"": 21, CONTRIB: 1}


def test_a_contributed_operator_under_portable_is_refused_with_the_profile_that_has_it(tmp_path: Path) -> None:
    graph = suture.trace(nn.SiLU(), torch.randn(2, 3))
    with pytest.raises(SutureError, match=r"\[S506\].*silu=contrib.*com.microsoft.*portable.*onnxruntime has it"):
        export_onnx(graph, tmp_path / "m.onnx", choices={"silu": "contrib"})
    assert not list(tmp_path.iterdir())


def test_mobile_must_have_numbers_for_every_size_and_says_which(tmp_path: Path) -> None:
    _, graph = stack()
    with pytest.raises(
        SutureError, match=r"\[S506\].*mobile must have numbers for the sizes batch, length; sizes batch=2"
    ):
        export_onnx(graph, tmp_path / "m.onnx", profile="mobile")
    path = export_onnx(graph, tmp_path / "m.onnx", profile="mobile", sizes=("batch=1", "length = 5"))
    shapes = [[d.dim_value for d in v.type.tensor_type.shape.dim] for v in onnx.load(path).graph.input]
    assert shapes == [[1, 5, 16]]
    assert not {"Shape", "Expand", "Concat"} & set(summarise_onnx(path).operators)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ({"profile": "desktop"}, Code.PROFILE, "known profiles: mobile, onnxruntime, portable"),
        ({"profile": "onnx"}, Code.PROFILE, "the nearest is 'onnxruntime'"),
        ({"sizes": {"bach": 1}}, Code.INPUT, "no size is called 'bach'; the nearest is 'batch'"),
        ({"sizes": {"batch": 0}}, Code.INPUT, "the size batch cannot be 0"),
        ({"sizes": ("batch",)}, Code.OPTION, "'batch' is no size; 'batch=1' would be right"),
        ({"sizes": ("batch=many",)}, Code.OPTION, "the size batch cannot be 'many'"),
        ({"choices": {"gellu": "operator"}}, Code.OPTION, "there is no choice 'gellu'; the nearest is 'gelu'"),
        ({"choices": ("linear=fast",)}, Code.OPTION, "the choice linear cannot be 'fast'"),
        ({"choices": ("linear",)}, Code.OPTION, "'linear' is no choice; 'linear=gemm' would be right"),
    ],
)
def test_options_that_cannot_be_are_one_line(options: dict[str, Any], code: Code, message: str, tmp_path: Path) -> None:
    _, graph = stack(1)
    with pytest.raises(SutureError) as caught:
        export_onnx(graph, tmp_path / "m.onnx", **options)
    assert caught.value.code == code
    assert message in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("opset", "message"), [(17, "opset 17 has no BitwiseAnd"), (16, "no rules for opset 16")])
def test_an_opset_that_is_too_old_names_the_operator_and_the_lowest(opset: int, message: str, tmp_path: Path) -> None:
    text = "graph g(%x: i64[4]) {\n %y: i64[4] = bitwise_and(%x, %x)\n return %y\n}"
    with pytest.raises(SutureError, match=message) as caught:
        export_onnx(parse_graph(text), tmp_path / "m.onnx", opset=opset)
    assert "18 is the lowest that has it" in str(caught.value) or "17 to 23 would be right" in str(caught.value)


# choices


def test_rows_stay_rows_through_a_stack_of_blocks(tmp_path: Path) -> None:
    """Layers read and write matrices: no Reshape but those of the heads, one at the start and one at the end of a residual stream."""
    counts = []
    for depth in (1, 3):
        _, graph = stack(depth)
        operators = summarise_onnx(export_onnx(graph, tmp_path / "m.onnx")).operators
        assert operators["Gemm"] == 4 * depth
        counts.append(operators["Reshape"])
    assert counts[1] - counts[0] == 2 * 4


def test_a_single_layer_is_no_reason_for_rows(tmp_path: Path) -> None:
    graph = suture.trace(nn.Linear(4, 3), torch.randn(2, 5, 4), dynamic={"input": {0: "batch"}})
    assert dict(summarise_onnx(export_onnx(graph, tmp_path / "m.onnx")).operators) == {"MatMul": 1, "Add": 1}


@pytest.mark.parametrize("linear", ["matmul", "gemm"])
@pytest.mark.parametrize("heads", ["apart", "together"])
@pytest.mark.parametrize("gelu", ["operator", "written_out"])
def test_every_choice_computes_the_same(linear: str, heads: str, gelu: str, tmp_path: Path) -> None:
    module, graph = stack()
    choices = {"linear": linear, "heads": heads, "gelu": gelu}
    path = export_onnx(graph, tmp_path / "m.onnx", choices=choices)
    x = torch.randn(4, 3, 16)
    torch.testing.assert_close(run_at(path, "ORT_ENABLE_ALL", {"x": x})[0], module(x), rtol=1e-5, atol=1e-5)


def test_heads_together_take_fewer_nodes(tmp_path: Path) -> None:
    _, graph = stack()
    counts = [
        sum(summarise_onnx(export_onnx(graph, tmp_path / "m.onnx", choices={"heads": way})).operators.values())
        for way in ("apart", "together")
    ]
    assert counts[1] == counts[0] - 2 * 3


def test_a_profile_is_its_name_or_itself() -> None:
    assert find_profile("portable") is PROFILES["portable"]
    changed = PROFILES["onnxruntime"].with_choices({"silu": "product"})
    assert find_profile(changed).choices == Choices(**{**vars(PROFILES["onnxruntime"].choices), "silu": "product"})


def test_equal_tensors_are_stored_once_whatever_their_names(tmp_path: Path) -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(8, 8), nn.Linear(8, 8)
    second.load_state_dict(first.state_dict())
    graph = suture.trace(nn.Sequential(first, nn.ReLU(), second), torch.randn(2, 8))
    assert len(onnx.load(export_onnx(graph, tmp_path / "m.onnx")).graph.initializer) == 2


# sizes


def test_bound_sizes_are_bound_in_types_and_attributes() -> None:
    module, graph = stack(1)
    bound = bind_sizes(graph, {"batch": 3})
    assert bound.symbols() == ("length",)
    x = torch.randn(3, 4, 16)
    torch.testing.assert_close(evaluate(bound, [x])[0], module(x), rtol=1e-5, atol=1e-5)
    with pytest.raises(SutureError, match="input x has shape"):
        evaluate(bound, [torch.randn(2, 4, 16)])


def test_what_bound_sizes_make_constant_is_stored(tmp_path: Path) -> None:
    class Counted(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * torch.arange(x.shape[1], dtype=torch.float32).pow(2).add(1)

    graph = suture.trace(Counted(), torch.randn(2, 5), dynamic={"x": {0: "batch", 1: "n"}})
    path = suture.export_onnx(graph, tmp_path / "m.onnx", profile="mobile", sizes={"batch": 2, "n": 4}, optimise=True)
    assert summarise_onnx(path).operators == {"Mul": 1}
    x = torch.randn(2, 4)
    torch.testing.assert_close(run_at(path, "ORT_ENABLE_ALL", {"x": x})[0], Counted()(x))


# scripts and the command line


def test_a_script_chooses_the_profile(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\ndef net():\n    return nn.Sequential(nn.Linear(4, 4), nn.SiLU())\n"
    )
    (tmp_path / "s.suture").write_text(
        'suture 1\nmodel net = torch "net:net" input f32[batch, 4]\n'
        'export net to "net.onnx" opset 20 profile onnxruntime optimise true\n'
        'export net to "phone.onnx" profile mobile sizes "batch=1"\n'
    )
    suture.run(tmp_path / "s.suture")
    assert CONTRIB in domains(tmp_path / "net.onnx")
    assert summarise_onnx(tmp_path / "phone.onnx").operators == {"Gemm": 1, "Sigmoid": 1, "Mul": 1}


# documentation


def test_the_page_on_onnx_says_what_is_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[1] / "docs" / "onnx.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    model, _ = stack(1)
    names: dict[str, Any] = {"suture": suture, "model": model, "x": torch.randn(2, 5, 16)}
    for block in page.split("```python\n")[1:]:
        exec(block.partition("```")[0], names)
    for profile in PROFILES:
        assert f"| `{profile}` |" in page
    for choice in vars(Choices()):
        assert f"| `{choice}` |" in page
