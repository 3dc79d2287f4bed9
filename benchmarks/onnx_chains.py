"""How the peers make an ONNX file: torch's exporter and what optimises behind it, each as its documentation says."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx_cases import Case
from torch import Tensor, nn

OPSET = 20  # what torch's exporter writes by default

Chain = Callable[["Exports", Path], None]


class Exports:
    """What torch exports for one model, made once for all chains that start from it."""

    def __init__(self, case: Case, inputs: Tensor, folder: Path) -> None:
        self.case, self.inputs, self.folder = case, inputs, folder
        self._made: dict[str, Path] = {}

    def exported(self, *, optimise: bool, classes: bool = False) -> Path:
        """The exporter's file, with or without its own optimisation, or of the model that its own classes rewrote."""
        name = f"export-{optimise}-{classes}"
        if name not in self._made:
            module = self.case.module()
            if classes:
                from timm.utils.model import reparameterize_model

                module = reparameterize_model(module)
            self._made[name] = _export(module, self.inputs, self.folder / f"{name}.onnx", optimise=optimise)
        return self._made[name]

    def raw(self) -> onnx.ModelProto:
        return onnx.load(str(self.exported(optimise=False)))

    def optimised(self) -> onnx.ModelProto:
        return onnx.load(str(self.exported(optimise=True)))


def _export(module: nn.Module, inputs: Tensor, path: Path, *, optimise: bool) -> Path:
    with torch.no_grad():
        program = torch.onnx.export(
            module, (inputs,), dynamo=True, opset_version=OPSET, optimize=optimise, verbose=False
        )
    assert program is not None
    program.save(str(path), external_data=False)
    return path


def _save(model: onnx.ModelProto, path: Path) -> None:
    onnx.save(model, str(path))


def _exporter(exports: Exports, path: Path) -> None:
    path.write_bytes(exports.exported(optimise=True).read_bytes())


def _classes(exports: Exports, path: Path) -> None:
    path.write_bytes(exports.exported(optimise=True, classes=True).read_bytes())


def _onnxslim(exports: Exports, path: Path) -> None:
    import onnxslim

    _save(onnxslim.slim(exports.raw()), path)


def _exporter_onnxslim(exports: Exports, path: Path) -> None:
    import onnxslim

    _save(onnxslim.slim(exports.optimised()), path)


def _onnxsim(exports: Exports, path: Path) -> None:
    import onnxsim

    made, valid = onnxsim.simplify(exports.raw())
    if not valid:
        raise RuntimeError("onnxsim's own check failed")
    _save(made, path)


def _onnxoptimizer(exports: Exports, path: Path) -> None:
    import onnxoptimizer

    passes = onnxoptimizer.get_fuse_and_elimination_passes()
    _save(onnxoptimizer.optimize(exports.raw(), passes, fixed_point=True), path)


def _optimize_for_ort(exports: Exports, path: Path) -> None:
    import onnx_ir
    from onnxscript.rewriter.ort_fusions import optimize_for_ort

    model = onnx_ir.serde.deserialize_model(exports.optimised())
    result = optimize_for_ort(model)
    _save(onnx_ir.serde.serialize_model(result[0] if isinstance(result, tuple) else result), path)


def _ort_offline(exports: Exports, path: Path) -> None:
    """ONNX Runtime's own optimiser, saved; what it then does to the saved file again is measured with the rest."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 3
    ort.InferenceSession(str(exports.exported(optimise=True)), options, providers=["CPUExecutionProvider"])


def _ort_transformers(exports: Exports, path: Path) -> None:
    from onnxruntime.transformers import optimizer

    case = exports.case
    made = optimizer.optimize_model(
        str(exports.exported(optimise=False)),
        model_type=case.recipe or "bert",
        num_heads=case.heads,
        hidden_size=case.width,
    )
    made.save_model_to_file(str(path))


def chains(case: Case, *, quick: bool) -> Mapping[str, Chain]:
    """The peers' chains for one model, by name."""
    found: dict[str, Chain] = {"torch.onnx.export": _exporter, "export + onnxslim": _exporter_onnxslim}
    if case.classes:
        found["own classes + export"] = _classes
    if quick:
        return found
    found |= {
        "raw + onnxslim": _onnxslim,
        "raw + onnxsim": _onnxsim,
        "raw + onnxoptimizer": _onnxoptimizer,
        "export + optimize_for_ort": _optimize_for_ort,
        "export + ORT offline": _ort_offline,
    }
    if case.recipe is not None:
        found["raw + ORT transformers"] = _ort_transformers
    return found


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """The tools print tables and warnings of their own: the report is one table."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    sink: Any = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
