"""Calling `torch.export`, and saying in one line what it said when it could not."""

from __future__ import annotations

import inspect
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from suture.ir.errors import Code, SutureError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from suture.frontends.dynamic import Inputs


def export(module: nn.Module, inputs: Inputs) -> ExportedProgram:
    """Export a module in evaluation mode, its own mode restored afterwards.

    :raises SutureError: MODULE, DYNAMIC or EXPORT, if it does not run on the inputs or cannot be exported
    """
    from suture.frontends.dynamic import register_dataclasses

    inputs.args, inputs.kwargs = inputs.enlarged()
    try:
        return _export(module, inputs)
    except SutureError:
        raise
    except Exception as error:
        # Torch does not look into dataclasses that it was not told of; those that come back are known once the module has run.
        outcome = _run_once(module, inputs)
        if isinstance(outcome, Exception) or not register_dataclasses(outcome):
            raise _explain(module, inputs, error, outcome) from error
    try:
        return _export(module, inputs)
    except Exception as error:
        raise _explain(module, inputs, error, None) from error


def _export(module: nn.Module, inputs: Inputs) -> ExportedProgram:
    from suture.frontends.recurrent import RecurrentLayers

    with ExitStack() as stack:
        stack.enter_context(evaluation_mode(module))
        stack.enter_context(_quiet())
        stack.enter_context(_lean())
        stack.enter_context(_tensors_that_compute(module))
        if any(isinstance(part, nn.RNNBase) for part in module.modules()):  # watching every call costs time
            stack.enter_context(RecurrentLayers())
        stack.enter_context(_plain_attention())
        stack.enter_context(_named_arguments(module, inputs.signature))
        return torch.export.export(module, inputs.args, inputs.kwargs, dynamic_shapes=inputs.marks(), strict=False)


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Put every part of a module into evaluation mode, and back."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


@contextmanager
def _lean() -> Iterator[None]:
    """Without what nothing here reads: a Python traceback for every node, and code for every module on the way. A third of the time."""
    import torch.fx.config as config
    from torch.fx import _lazy_graph_module

    # the second switch is private to torch: without it tracing is slower, not different
    lazily = getattr(_lazy_graph_module, "_use_lazy_graph_module", None)
    kept, config.do_not_emit_stack_traces = config.do_not_emit_stack_traces, True
    try:
        with nullcontext() if lazily is None else lazily(True):
            yield
    finally:
        config.do_not_emit_stack_traces = kept


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Without the fused inference path of `nn.MultiheadAttention`, which is one operator without a gradient."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


@contextmanager
def _named_arguments(module: nn.Module, signature: inspect.Signature) -> Iterator[None]:
    """Let `forward` show a signature without `**kwargs`, whose dynamic sizes torch.export does not take."""
    forward = module.forward
    if inspect.signature(forward) == signature or "forward" in vars(module):
        yield
        return

    def named(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    named.__signature__ = signature  # type: ignore[attr-defined]
    module.forward = named
    try:
        yield
    finally:
        del module.forward


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what torch logs and warns about while it exports, tracebacks included: errors come back as exceptions."""
    before = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(before)


@contextmanager
def _tensors_that_compute(module: nn.Module) -> Iterator[None]:
    """Lend a module on the meta device fake tensors on the CPU, so that it may be given real inputs."""
    held = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
    if not any(tensor.is_meta for tensor in held.values()):
        yield
        return
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv
    from torch.nn.utils.stateless import _reparametrize_module

    lent: dict[int, torch.Tensor] = {}
    with FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv()):
        for tensor in held.values():
            fake = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
            lent[id(tensor)] = nn.Parameter(fake, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake
    with _reparametrize_module(module, {name: lent[id(tensor)] for name, tensor in held.items()}):
        yield


def _explain(module: nn.Module, inputs: Inputs, failure: Exception, outcome: Any) -> SutureError:
    """Say why an export failed: the inputs, a dimension that the module fixes, or the module itself.

    :param outcome: what the module returned or raised when it was run without torch.export
    """
    text, name = str(failure), type(module).__name__
    fixed = re.search(
        r"L\['(\w+)'\]((?:\[[^\]]*\])*)\.size\(\)\[(\d+)\] as dynamic but your code specialized it to be a constant \((\d+)\)",
        text,
    )
    if fixed is not None:
        where = fixed[1] + "".join(f".{key}" for key in re.findall(r"\['?([^\]']+)'?\]", fixed[2]))
        return SutureError(
            Code.DYNAMIC, f"the module fixes dimension {fixed[3]} of {where} at {fixed[4]}", where=name,
            remedy="leave it out of dynamic, or make the module's code independent of it",
        )  # fmt: skip
    if "Constraints violated" in text or "ConstraintViolation" in type(failure).__name__:
        detail = next(
            (line.strip(" -") for line in text.splitlines() if line.strip().startswith("-")), _first_line(text)
        )
        return SutureError(
            Code.DYNAMIC,
            f"the module constrains a dynamic dimension: {detail}",
            where=name,
            remedy="make fewer dimensions dynamic",
        )
    if isinstance(outcome, Exception):
        given = ", ".join(
            f"{leaf.dotted} {str(leaf.tensor.dtype).removeprefix('torch.')}{list(leaf.tensor.shape)}"
            for leaf in inputs.leaves
        )
        return SutureError(
            Code.MODULE, f"the module does not run on these inputs: {_first_line(str(outcome)) or type(outcome).__name__}", where=name,
            remedy=f"given were {given or 'no tensors'}",
        )  # fmt: skip
    place = _place(text)
    if "data-dependent" in text:
        return SutureError(
            Code.EXPORT, f"the module branches on the values of a tensor: {_first_line(text)}", where=f"{name}{place}",
            remedy="write the branch as torch.where, or take it out of the traced part",
        )  # fmt: skip
    return SutureError(
        Code.EXPORT, f"torch.export cannot trace the module: {_first_line(text) or type(failure).__name__}", where=f"{name}{place}",
        remedy="keep forward to torch operators on its inputs, or trace a smaller part",
    )  # fmt: skip


def _run_once(module: nn.Module, inputs: Inputs) -> Any:
    """What the module itself returns or raises on the inputs, without torch.export."""
    with evaluation_mode(module), _quiet(), _tensors_that_compute(module), torch.no_grad():
        try:
            return module(*inputs.args, **inputs.kwargs)
        except Exception as error:
            return error


def _first_line(text: str) -> str:
    """The first line that says something; torch appends pages."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def _place(text: str) -> str:
    """Where in the user's code it happened, if torch's message says so."""
    found = re.findall(r'File "([^"]+)", line (\d+), in', text)
    return f" at {Path(found[-1][0]).name}:{found[-1][1]}" if found else ""
