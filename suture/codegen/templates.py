"""The templates by operator: which nodes anchor a group of their own, and what is settled before groups are chosen."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from suture.codegen import running
from suture.codegen.attention import template as attention
from suture.codegen.attention.patterns import find_attention, prefer_storage
from suture.codegen.attention.sharing import share_keys
from suture.codegen.convolution import template as convolution
from suture.codegen.cuda import gemm as cuda_gemm
from suture.codegen.cuda.library import library_on_gpu
from suture.codegen.gemm import template as gemm
from suture.codegen.grouped import template as grouped
from suture.codegen.layouts import joins as layouts_joins
from suture.codegen.layouts import orders as layouts
from suture.codegen.pooling import template as pooling
from suture.codegen.ragged import template as ragged
from suture.codegen.step import Context, Template
from suture.ir.graph import Graph


@functools.cache
def templates() -> Mapping[str, Template]:
    """Operator -> template."""
    found: dict[str, Template] = {}
    found.update(dict.fromkeys(("linear", "matmul", "addmm", "einsum"), cuda_gemm.by_target(gemm.TEMPLATE)))
    flash = "the GPU's library has flash attention"
    found.update({name: library_on_gpu(each, flash) for name, each in attention.TEMPLATES.items()})
    cudnn = "the GPU's library convolves"
    found.update({name: library_on_gpu(each, cudnn) for name, each in convolution.TEMPLATES.items()})
    found.update(pooling.TEMPLATES)
    found.update(layouts_joins.TEMPLATES)
    found.update(grouped.TEMPLATES)
    found.update(ragged.TEMPLATES)
    scans = "the GPU's library scans"
    found.update({name: library_on_gpu(each, scans) for name, each in running.TEMPLATES.items()})
    return found


def prepare(graph: Graph, context: Context) -> None:
    """Put together what templates take as a whole, and settle how values lie in memory."""
    find_attention(graph, context)
    if context.target == "cpp":
        share_keys(graph, context)
    if context.target == "cuda" and not context.alone:
        return  # libraries take and give values in the order of their dimensions
    layouts_joins.settle_joins(graph)
    context.storage.update(layouts.choose(graph))
    prefer_storage(graph, context)
