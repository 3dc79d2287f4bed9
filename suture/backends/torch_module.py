"""A graph as a PyTorch module: `to_torch` gives a `torch.fx.GraphModule` that runs, trains, saves and loads like the one that was traced."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from suture.backends.module_tree import adopt, build_tree, fresh_child
from suture.backends.torch_writer import GraphWriter
from suture.ir.bodies import with_captures
from suture.ir.expansion import expanded
from suture.ir.graph import Graph
from suture.ir.text import parse_graph


class SutureModule(fx.GraphModule):
    """The module of a graph. It differs from its base in how it is pickled.

    A `GraphModule` is pickled as code, and loaded by tracing that code; but tracing computes what depends on no input then and there, and would turn
    modes and sizes into constants. This one is pickled as the text of its graph.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        """The text of the graph and the tree of tensors; the code, where it was changed after the graph was written."""
        written = self.meta.get(_WRITTEN)
        if written is None or written["code"] != self.code:
            return super().__reduce__()
        root = nn.Module()
        adopt(root, self)
        root._modules.pop(written["bodies"], None)  # the text has them
        root.training = self.training
        return _restore, (written["text"], root)


_WRITTEN = "suture"  # the key in a module's `meta`, which copies keep


def to_torch(graph: Graph) -> fx.GraphModule:
    """A module that computes the graph, in evaluation mode.

    Its parameters and buffers have the names they had in the traced module, tied ones included, and are the graph's own tensors, not copies.
    `train()` and `eval()` switch dropout and batch norm, of the whole or of one submodule.

    :raises SutureError: TORCH, if the graph cannot become a module
    """
    return _module(graph, build_tree(graph)).eval()


def _module(graph: Graph, root: nn.Module) -> SutureModule:
    plain = expanded(graph)
    opened, bodies = with_captures(plain), ""
    if opened is not plain:
        bodies = fresh_child(root, "bodies")
        root.add_module(bodies, nn.Module())
    code = GraphWriter(opened, root, root._modules.get(bodies) or root, f"{bodies}.").write()
    code.lint()
    module = SutureModule(root, code, class_name=graph.name if graph.name.isidentifier() else "GraphModule")
    adopt(module, root)
    module.meta[_WRITTEN] = {"text": str(graph), "code": module.code, "bodies": bodies}
    return module


def _restore(text: str, root: nn.Module) -> SutureModule:
    module = _module(parse_graph(text), root)
    module.training = root.training
    return module
