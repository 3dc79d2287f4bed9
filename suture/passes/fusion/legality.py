"""Where a pattern that matches must stay as it is: predicates on matches, each the reason or nothing."""

from __future__ import annotations

from suture.ir.sizes import Dim
from suture.passes.fusion.matching import Match


def on_more_than_matrices(match: Match) -> str | None:
    """On a matrix one Gemm multiplies and adds: taking the bias off it would make two nodes of one. So does a product of integers."""
    if match.value("x").rank < 3:
        return f"{match.value('x')} is a matrix: its product adds the bias already"
    bias = match.value("c")
    stored = bias.producer is not None and bias.producer.operator.name == "dequantise"
    return f"{bias} is stored as integers: the product of integers adds it" if stored else None


def joins_heads(match: Match) -> str | None:
    """Rows of heads are joined head by head."""
    joined: Dim = match.known["h"] * match.known["d"]
    columns: Dim = match.known["i"]
    return None if joined == columns else f"{columns} columns are not all heads"
