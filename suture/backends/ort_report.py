"""What ONNX Runtime really runs in integers: read from its own optimised graph, and from one profiled run of it.

A file that says QuantizeLinear and DequantizeLinear only asks for integers. Whether an operator between them runs in integers is decided when
ONNX Runtime optimises the graph, so that is where the answer stands.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from suture.backends.onnxruntime import OnnxModel
from suture.ir.errors import Code, SutureError

CONVERSIONS = ("QuantizeLinear", "DequantizeLinear")
"""Between integers and floats; they are overhead."""

LAYOUT = (
    "Concat", "Expand", "Flatten", "Gather", "GatherElements", "Identity", "Pad", "ReorderInput", "ReorderOutput", "Reshape", "Shape", "Slice",
    "Split", "Squeeze", "Transpose", "Unsqueeze", "Cast", "Constant", "ConstantOfShape", "Range",
)  # fmt: skip
"""Operators that compute nothing; they are no part of the answer."""

_CONTRACTIONS = ("Conv", "MatMul", "Gemm")  # in the names of all operators that multiply and accumulate
_EIGHT_BITS = ("int8", "uint8")
_SMALL_FILE = 2**30  # bytes: of a larger file no optimised copy is written
_DYNAMIC = 4  # the size that a symbolic dimension gets if no inputs are given


@dataclass(frozen=True)
class Executed:
    """One node as it ran: MACs are 0 for what multiplies no matrices."""

    operator: str
    name: str
    integer: bool
    macs: int
    microseconds: float


@dataclass(frozen=True)
class QuantisationReport:
    """What ran in integers and what in floats."""

    path: Path
    nodes: tuple[Executed, ...]

    def counts(self, *, integer: bool) -> Mapping[str, int]:
        """How many nodes of each operator computed in integers, or in floats; conversions and layout are counted in neither."""
        found = Counter(
            node.operator
            for node in self.nodes
            if node.integer == integer and node.operator not in (*CONVERSIONS, *LAYOUT)
        )
        return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))

    @property
    def conversions(self) -> Mapping[str, int]:
        """How many conversions between integers and floats are left."""
        found = Counter(node.operator for node in self.nodes)
        return {name: found[name] for name in CONVERSIONS}

    @property
    def integer_share(self) -> float:
        """The share of the multiply-accumulates that ran in integers; 0 where there are none."""
        total = sum(node.macs for node in self.nodes)
        return sum(node.macs for node in self.nodes if node.integer) / total if total else 0.0

    def time_share(self, *, conversions: bool = False) -> float:
        """The share of the time that integers took, or that conversions took; of one run."""
        total = sum(node.microseconds for node in self.nodes) or 1.0
        chosen = [
            node
            for node in self.nodes
            if (node.operator in CONVERSIONS if conversions else _computes_in_integers(node))
        ]
        return sum(node.microseconds for node in chosen) / total

    def as_data(self) -> dict[str, Any]:
        """The report as plain data."""
        return {
            "integer": self.counts(integer=True),
            "float": self.counts(integer=False),
            "conversions": dict(self.conversions),
            "integer_share_of_macs": self.integer_share,
            "integer_share_of_time": self.time_share(),
            "conversion_share_of_time": self.time_share(conversions=True),
        }

    def __str__(self) -> str:
        def listed(counts: Mapping[str, int]) -> str:
            return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"

        return "\n".join(
            (
                f"in integers: {listed(self.counts(integer=True))}",
                f"in floats:   {listed(self.counts(integer=False))}",
                f"conversions: {listed(self.conversions)}",
                f"{self.integer_share:.1%} of the multiply-accumulates ran in integers",
                f"time: {self.time_share():.0%} in integers, {self.time_share(conversions=True):.0%} in conversions",
            )
        )


def quantisation_report(
    path: str | Path, inputs: Sequence[torch.Tensor] | Mapping[str, torch.Tensor] | None = None, *, threads: int = 1
) -> QuantisationReport:
    """Run an ONNX file once on the CPU and say which of the nodes of ONNX Runtime's optimised graph ran in integers.

    :param inputs: what to run it on, in order or by name; zeros if absent, with 4 for every symbolic size
    :raises SutureError: FILE, ONNX_FILE or PATH, if the file is not there, broken, or points outside its folder; INPUT, if the inputs do not fit;
        RUNTIME, if ONNX Runtime refuses or fails
    """
    import onnxruntime

    model = OnnxModel(path, threads=threads)  # refuses what is no model, in one line
    feed = model.feed(model.zeros(_DYNAMIC) if inputs is None else inputs)
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = threads
        # the level at which integers are decided on; the last one only changes layouts, and pads the channels of floats
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "run")
        optimised = Path(folder) / "optimised.onnx"
        if Path(path).stat().st_size < _SMALL_FILE:
            options.optimized_model_filepath = str(optimised)
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        try:
            session.run(None, feed)
        except Exception as error:  # ONNX Runtime's errors share no base class
            raise SutureError(
                Code.RUNTIME,
                str(error).splitlines()[0],
                where=str(path),
                remedy="give inputs that the model can run on",
            ) from None
        finally:
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        kernels = _kernel_shapes(optimised)
    return QuantisationReport(Path(path), tuple(_executed(events, kernels)))


def _kernel_shapes(optimised: Path) -> dict[str, list[int]]:
    """The shape of each convolution's kernel by the node's name: kernels that the runtime has packed are missing in its profile."""
    import onnx

    if not optimised.exists():
        return {}
    graph = onnx.load(str(optimised), load_external_data=False).graph
    shapes = {item.name: list(item.dims) for item in graph.initializer}
    found = {}
    for node in graph.node:
        wide = [shapes[name] for name in node.input if len(shapes.get(name, ())) > 2]
        if "Conv" in node.op_type and wide:
            found[node.name] = wide[0]
    return found


def _executed(events: Sequence[Mapping[str, Any]], kernels: Mapping[str, list[int]]) -> Iterator[Executed]:
    for event in events:
        if event.get("cat") != "Node" or not event["name"].endswith("_kernel_time"):
            continue
        arguments = event["args"]
        operator = str(arguments["op_name"])
        operands = [(kind, shape) for entry in arguments["input_type_shape"] for kind, shape in entry.items()]
        results = [shape for entry in arguments["output_type_shape"] for shape in entry.values()]
        integer = any(kind in _EIGHT_BITS for kind, _ in operands) and operator not in CONVERSIONS
        name = str(event["name"]).removesuffix("_kernel_time")
        macs = _macs(operator, operands, results, kernels.get(name))
        yield Executed(operator, name, integer, macs, float(event["dur"]))


def _macs(
    operator: str, operands: Sequence[tuple[str, list[int]]], results: Sequence[list[int]], kernel: list[int] | None
) -> int:
    """The multiply-accumulates of a convolution or a product of matrices."""
    if not any(name in operator for name in _CONTRACTIONS) or not results:
        return 0
    shapes = [shape for _, shape in operands if len(shape) >= 2]
    produced = math.prod(results[0])
    if "Conv" in operator:
        known = kernel or (shapes[1] if len(shapes) > 1 else [0, 0])
        return produced * math.prod(known[1:])
    if not shapes or not shapes[0]:
        return 0
    if "Gemm" in operator:
        return produced * (math.prod(shapes[0]) // max(results[0][0], 1))
    return produced * shapes[0][-1]


def _computes_in_integers(node: Executed) -> bool:
    return node.integer and node.operator not in LAYOUT


__all__ = ["Executed", "QuantisationReport", "quantisation_report"]
