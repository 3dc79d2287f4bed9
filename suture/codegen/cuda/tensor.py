"""Products of tiles on tensor cores: which kernels may use them, and how the product is spelled.

A `MultiplyAccumulate` of short floats with 32 lanes side by side gives each warp whole rows of the tile, in pieces of 16 x 8 that the instruction
`mma.sync.m16n8k16` adds up in float32 (PTX ISA 8.0, section 9.7.14.5.8; operands come by `ldmatrix`, section 9.7.14.5.15). Its accumulators lie
in another order over the lanes than the kernel says, so they stay *fragments* while products are added, and come into the lanes' own buffer through
a corner of shared memory when something reads it. That is right as long as nothing but products and zeroes is written to the buffer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from suture.ir.kernel import (
    Apply,
    Buffer,
    Expression,
    Kernel,
    Literal,
    Load,
    Loop,
    MultiplyAccumulate,
    Scope,
    Statement,
    Store,
    Threads,
    Update,
    loads_in,
    walk,
)
from suture.ir.kernel_collectives import number

ARCHITECTURE = 80
"""The least compute capability, times ten, that has these instructions for both short floats."""

LDMATRIX = (
    '  asm volatile("ldmatrix.sync.aligned.m8n8.x4{kind}.shared.b16 {{%0, %1, %2, %3}}, [%4];"\n'
    '    : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"((unsigned)__cvta_generic_to_shared(row)) : "memory");'
)
MMA = (
    '  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32 {{%0, %1, %2, %3}}, "\n'
    '    "{{%4, %5, %6, %7}}, {{%8, %9}}, {{%0, %1, %2, %3}};"\n'
    '    : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));'
)
_SHORT = {torch.bfloat16: "bf16", torch.float16: "f16"}
_DEEP, _HIGH, _WIDE = 16, 16, 8  # one instruction's product
PITCH = 8
"""Elements between the rows of a padded tile beyond its width: rows then start in different banks of shared memory."""
EXCHANGE = 36
"""Numbers from row to row of the corner through which fragments come; 16 rows of 32 for each warp."""


@dataclass(frozen=True)
class Accumulator:
    """A buffer whose products run on tensor cores: per warp `high` x `wide` pieces of 16 x 8."""

    buffer: Buffer
    high: int
    columns: int

    @property
    def wide(self) -> int:
        """Pieces side by side."""
        return self.columns * 32 // _WIDE

    @property
    def name(self) -> str:
        """The fragments' name."""
        return f"k_pieces_{self.buffer.name}"


def accumulators(kernel: Kernel) -> dict[str, Accumulator]:
    """The lanes' buffers that may live as fragments."""
    products = [each for each in walk(kernel.body) if isinstance(each, MultiplyAccumulate)]
    found: dict[str, Accumulator] = {}
    for buffer in {each.target.name: each.target for each in products}.values():
        own = [each for each in products if each.target == buffer]
        if all(map(_fits, own)) and _only_zeroed(kernel, buffer):
            rows, columns = (number(size) for size in buffer.shape)
            found[buffer.name] = Accumulator(buffer, rows // _HIGH, columns)
    return found


def operands(kernel: Kernel, chosen: dict[str, Accumulator]) -> frozenset[str]:
    """The shared tiles that tensor cores read: their rows are padded."""
    products = [each for each in walk(kernel.body) if isinstance(each, MultiplyAccumulate)]
    return frozenset(tile.name for each in products if each.target.name in chosen for tile in _tiles(each) or ())


def _tiles(product: MultiplyAccumulate) -> tuple[Buffer, Buffer] | None:
    """The two shared tiles of a product, element (row, inner) of one by element (inner, column) of the other."""
    left = _tile(product.left, (product.row, product.inner))
    right = _tile(product.right, (product.inner, product.column))
    return None if left is None or right is None else (left, right)


def operand_type(product: MultiplyAccumulate) -> torch.dtype:
    """The element type of the tiles of a product on tensor cores."""
    tiles = _tiles(product)
    assert tiles is not None
    return tiles[0].dtype


def _tile(expression: Expression, index: tuple[Expression, ...]) -> Buffer | None:
    loaded = expression.operands[0] if isinstance(expression, Apply) and expression.function == "cast" else expression
    if not isinstance(loaded, Load) or loaded.index != index or loaded.buffer.scope is not Scope.SHARED:
        return None
    return loaded.buffer if number(loaded.buffer.shape[1]) % 8 == 0 else None


def _fits(product: MultiplyAccumulate) -> bool:
    tiles, (rows, columns), depth = _tiles(product), (number(size) for size in product.target.shape), product.depth
    if tiles is None or not isinstance(depth, Literal):
        return False
    left, right = (tile.dtype for tile in tiles)
    whole = product.rows == Literal(product.count // 32 * rows) and product.columns == Literal(columns * 32)
    lanes = product.across == 32 and product.count % 32 == 0 and rows % _HIGH == 0
    typed = left == right and left in _SHORT and product.target.dtype == torch.float32
    return whole and lanes and typed and int(depth.value) % _DEEP == 0


def _only_zeroed(kernel: Kernel, buffer: Buffer) -> bool:
    """Whether nothing is written to a buffer but products, and zeroes all over."""
    for each in walk(kernel.body):
        if isinstance(each, Update) and each.buffer == buffer:
            return False
    stores = [each for each in walk(kernel.body) if isinstance(each, Store) and each.buffer == buffer]
    zeroed = [store for each in kernel_regions(kernel) for store in zeroes(each, buffer)]
    return len(stores) == len(zeroed)


def kernel_regions(kernel: Kernel) -> Iterator[Threads]:
    """The thread regions of a kernel."""
    return (each for each in walk(kernel.body) if isinstance(each, Threads))


def zeroes(region: Threads, buffer: Buffer) -> list[Store]:
    """The stores of a region that zero all of a buffer, each in two loops of its own."""
    found = []
    for outer in region.body:
        match outer:
            case Loop(first, Literal(value=0), rows, (Loop(second, Literal(value=0), columns, (Store() as store,)),)):
                whole = {first.name: rows, second.name: columns}
                names = tuple(getattr(at, "name", None) for at in store.index)
                covered = len(set(names)) == 2 and tuple(whole.get(name or "") for name in names) == buffer.shape
                nought = isinstance(store.value, Literal) and store.value.value == 0
                if store.buffer == buffer and covered and nought:
                    found.append(store)
    return found


def reads(statement: Statement, buffer: Buffer) -> bool:
    """Whether a region reads a buffer."""
    return any(load.buffer == buffer for each in walk((statement,)) for load in loads_in(each))


def support(dtypes: set[torch.dtype]) -> list[str]:
    """The device functions around the instructions."""
    if not dtypes:
        return []
    row = "__device__ __forceinline__ void k_ldmatrix{name}(unsigned* r, const k_u16* row) {{\n{text}\n}}"
    lines = [row.format(name=name, text=LDMATRIX.format(kind=kind)) for name, kind in (("", ""), ("_across", ".trans"))]
    for dtype in sorted(dtypes, key=str):
        kind = _SHORT[dtype]
        lines.append(
            f"__device__ __forceinline__ void k_mma_{kind}(float* c, const unsigned* a, const unsigned* b) {{\n{MMA.format(kind=kind)}\n}}"
        )
    return lines


def product_lines(product: MultiplyAccumulate, chosen: Accumulator, pitch: dict[str, int]) -> list[str]:
    """The product: pieces of 16 rows and of 16 columns, 16 deep; addresses as `ldmatrix` wants them, one row of eight from each lane."""
    tiles, depth = _tiles(product), product.depth
    assert tiles is not None
    assert isinstance(depth, Literal)
    left, right = tiles
    start = f"((threadIdx.x >> 5) * {chosen.high * _HIGH} + i * {_HIGH} + (threadIdx.x & 15)) * {pitch[left.name]}"
    other = f"(k + (threadIdx.x & 15)) * {pitch[right.name]} + j * {_WIDE} + (threadIdx.x >> 4 & 1) * {_WIDE}"
    kind = _SHORT[left.dtype]
    cleared = [] if product.adds else zero_lines(chosen)
    return [
        *cleared,
        "#pragma unroll",
        f"for (int k = 0; k < {int(depth.value)}; k += {_DEEP}) {{",
        f"  unsigned k_left[{chosen.high}][4];",
        "  #pragma unroll",
        f"  for (int i = 0; i < {chosen.high}; ++i) k_ldmatrix(k_left[i], {left.name} + {start} + k + (threadIdx.x >> 4 & 1) * 8);",
        "  #pragma unroll",
        f"  for (int j = 0; j < {chosen.wide}; j += 2) {{",
        f"    unsigned k_right[4]; k_ldmatrix_across(k_right, {right.name} + {other});",
        "    #pragma unroll",
        f"    for (int i = 0; i < {chosen.high}; ++i) {{ k_mma_{kind}({chosen.name}[i][j], k_left[i], k_right);"
        f" k_mma_{kind}({chosen.name}[i][j + 1], k_left[i], k_right + 2); }}",
        "  }",
        "}",
    ]


def zero_lines(chosen: Accumulator) -> list[str]:
    """The fragments set to zero."""
    name = chosen.name
    inner = f"for (int j = 0; j < {chosen.wide}; ++j) for (int k = 0; k < 4; ++k) {name}[i][j][k] = 0.0f;"
    return ["#pragma unroll", f"for (int i = 0; i < {chosen.high}; ++i) {inner}"]


def exchange_lines(chosen: Accumulator) -> list[str]:
    """The fragments brought into the lanes' own buffer: 16 rows of 32 columns at a time, within each warp."""
    columns, target = chosen.columns, chosen.buffer.name
    place = f"k_corner[(threadIdx.x >> 2 & 7) * {EXCHANGE} + j * {_WIDE} + (threadIdx.x & 3) * 2"
    piece = f"{chosen.name}[i][c * 4 + j]"
    return [
        "{",
        f"  float* k_corner = k_exchange + (threadIdx.x >> 5) * {_HIGH * EXCHANGE};",
        "  #pragma unroll",
        f"  for (int i = 0; i < {chosen.high}; ++i) {{",
        "    #pragma unroll",
        f"    for (int c = 0; c < {columns}; ++c) {{",
        "      #pragma unroll",
        "      for (int j = 0; j < 4; ++j) {",
        f"        {place}] = {piece}[0]; {place} + 1] = {piece}[1];",
        f"        {place} + {8 * EXCHANGE}] = {piece}[2]; {place} + {8 * EXCHANGE} + 1] = {piece}[3];",
        "      }",
        "      __syncwarp();",
        "      #pragma unroll",
        f"      for (int r = 0; r < {_HIGH}; ++r) {target}[(i * {_HIGH} + r) * {columns} + c] = k_corner[r * {EXCHANGE} + (threadIdx.x & 31)];",
        "      __syncwarp();",
        "    }",
        "  }",
        "}",
    ]
