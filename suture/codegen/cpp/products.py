"""Products of matrices as objects of their own: most of what compilers do for a kernel with a product, the same in many kernels.

A register tile of one height, width and type is a function. Kernels of different models call the same ones, whose text is compiled once per machine.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from suture.codegen.cpp.micro import MICRO
from suture.codegen.prelude import PRELUDE

_CALL = re.compile(r"\bk_product<(\w+), (\w+), (\d+), (true|false), (\d+), (true|false), (\d+), (true|false)>\(")
_TILES = (12, 6)  # rows of a register tile, with long vectors and with short ones


def split_products(texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """Printed files without the functions that compute their products, and the files of these."""
    found = dict.fromkeys(_instances(*match.groups()) for text in texts for match in _CALL.finditer(text))
    return [f"#define K_APART\n{text}" if MICRO in text else text for text in texts], list(found)


def _instances(kind: str, other: str, rows: str, less: str, width: str, narrow: str, step: str, packed: str) -> str:
    """A file with the functions that a call may reach."""
    everything = "false" if narrow == "true" else "true"
    arguments = f"const {kind}* const*, k_i64, const {other}*, k_i64, {kind}*, k_i64, k_i64, bool"
    long, short = (
        " ".join(f"K_INSTANCE({height})" for height in _heights(int(rows), tile, less == "true")) for tile in _TILES
    )
    return (
        f'{PRELUDE}#define K_LINKAGE __attribute__((visibility("hidden")))\n{MICRO}'
        f"#define K_INSTANCE(R) template void k_columns<{kind}, {other}, R, {width}, {step}, {packed}, {everything}>({arguments});\n"
        f"#if K_TILE > {_TILES[1]}\n{long}\n#else\n{short}\n#endif\n"
    )


def _heights(rows: int, tile: int, less: bool) -> range:
    """The heights of register tiles that a tile of so many rows is cut into, as `k_product` does."""
    if less:
        return range(1, min(rows, tile) + 1)
    least = rows // -(-rows // tile)
    return range(least, least + (rows % least != 0) + 1)
