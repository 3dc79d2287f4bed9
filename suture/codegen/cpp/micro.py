"""Products of matrices on a CPU: register tiles in the vector types of gcc and clang.

A tile of up to 12 rows by two vectors of columns is kept in registers while the sum runs, outermost, over the contracted dimension: each step loads
two vectors of the right matrix and broadcasts one number of each row of the left one (Goto and van de Geijn, Anatomy of High-Performance Matrix
Multiplication, 2008, sections 2 and 4). Rows that are left over get a tile of just as many rows. Each row has its own pointer, so that a gather or a
convolution's window costs no copy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from suture.codegen.cpp.strides import replaced, stride_of_load
from suture.codegen.expressions import C_TYPES
from suture.ir.kernel import (
    Apply,
    Buffer,
    Expression,
    Kernel,
    Literal,
    Load,
    MultiplyAccumulate,
    Name,
    Scope,
    Store,
    Update,
    apply,
    cast,
    names_in,
    parts,
    walk,
)
from suture.ir.kernel_collectives import number

if TYPE_CHECKING:
    from suture.codegen.printer import KernelPrinter

_SCRATCH = 128  # how much of the contracted dimension a scratch tile holds
_ZEROS = 1024  # how much of it a row of zeros holds; as in the text below
_NEAR = 256  # bytes of a row that are fetched ahead
_VECTOR = 64  # bytes; what tiles are a multiple of, whatever the processor's vectors
_LOADED = {
    torch.bfloat16: "k_bf16",
    torch.float16: "k_f16",
    torch.int8: "k_i8",
}  # what the right matrix is converted from, vector by vector

MICRO = r"""
#ifndef K_MICRO
#define K_MICRO
#if defined(__AVX512F__)
#define K_VECTOR 64
#define K_TILE 12
#else
#define K_VECTOR 32
#define K_TILE 6
#endif
struct k_bf16 { k_u16 bits; };
struct k_f16 { k_u16 bits; };
alignas(64) static const double k_zeros[1024] = {};
template <class T> struct k_vector { typedef T type __attribute__((vector_size(K_VECTOR), aligned(sizeof(T)), may_alias)); };
template <class T, class B> struct k_wide {
  KFN typename k_vector<T>::type load(const B* p) { return *(const typename k_vector<T>::type*)p; }
};
typedef k_i16 k_shorts __attribute__((vector_size(K_VECTOR / 2), may_alias));
typedef k_i32 k_integers __attribute__((vector_size(K_VECTOR), may_alias));
typedef unsigned k_bits __attribute__((vector_size(K_VECTOR), may_alias));
typedef k_u16 k_halves __attribute__((vector_size(K_VECTOR / 2), aligned(2), may_alias));
typedef k_i8 k_bytes __attribute__((vector_size(K_VECTOR / 4), aligned(1), may_alias));
template <> struct k_wide<float, k_i8> {
  KFN k_vector<float>::type load(const k_i8* p) { /* each step twice as wide: in one step compilers go number by number */
    const k_shorts wider = __builtin_convertvector(*(const k_bytes*)p, k_shorts);
    return __builtin_convertvector(__builtin_convertvector(wider, k_integers), k_vector<float>::type);
  }
};
template <> struct k_wide<float, k_bf16> {
  KFN k_vector<float>::type load(const k_bf16* p) { return (k_vector<float>::type)(__builtin_convertvector(*(const k_halves*)p, k_bits) << 16); }
};
template <> struct k_wide<float, k_f16> {
  KFN k_vector<float>::type load(const k_f16* p) {
    k_bits h = __builtin_convertvector(*(const k_halves*)p, k_bits), magnitude = (h & 0x7fff) << 13;
    k_vector<float>::type value = (k_vector<float>::type)magnitude * 5.192296858534828e33f; /* 2^112 */
    k_bits special = (k_bits)(magnitude >= 0x0f800000u) & 0x7f800000u; /* infinite, or not a number */
    return (k_vector<float>::type)((k_bits)value | special | ((h & 0x8000) << 16));
  }
};

#ifdef K_APART /* products are compiled apart: they are the same in many libraries */
template <class T, class B, int R, int W, int STEP, bool PACKED, bool ALL>
__attribute__((visibility("hidden"))) void k_columns(const T* const* a, k_i64 ak, const B* b, k_i64 bk, T* c, k_i64 wide, k_i64 depth, bool adds);
#else
#ifndef K_LINKAGE
#define K_LINKAGE static
#endif
/* R rows by V vectors: U sums side by side where there are few, so that one need not wait for the other */
template <class T, class B, int R, int V, int U>
KFN void k_tile(const T* const* a, k_i64 ak, const B* b, k_i64 bk, T* c, k_i64 ck, k_i64 depth, bool adds) {
  typedef typename k_vector<T>::type vector;
  constexpr int L = K_VECTOR / sizeof(T);
  const T* row[R];
  vector sum[U][R][V];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) row[r] = a[r];
#pragma GCC unroll 16
  for (int u = 0; u < U; ++u)
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) sum[u][r][v] = vector{};
  if (adds)
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) sum[0][r][v] = *(const vector*)(c + r * ck + v * L);
  k_i64 k = 0;
  for (; k + U <= depth; k += U) {
#pragma GCC unroll 16
    for (int u = 0; u < U; ++u) {
      vector right[V];
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) {
        right[v] = k_wide<T, B>::load(b + (k + u) * bk + v * L);
        __builtin_prefetch(b + (k + u + 16) * bk + v * L);
      }
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const T left = row[r][(k + u) * ak];
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) sum[u][r][v] += left * right[v];
      }
    }
  }
  for (; U > 1 && k < depth; ++k)
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) {
      const vector right = k_wide<T, B>::load(b + k * bk + v * L);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) sum[0][r][v] += row[r][k * ak] * right;
    }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) {
      vector all = sum[0][r][v];
#pragma GCC unroll 16
      for (int u = 1; u < U; ++u) all += sum[u][r][v];
      *(vector*)(c + r * ck + v * L) = all;
    }
}
/* `wide` of W columns; STEP: how far apart the left matrix's numbers are along the contracted dimension, 0 if only `ak` says so */
template <class T, class B, int R, int W, int STEP, bool PACKED, bool ALL>
K_LINKAGE __attribute__((noinline)) void k_columns(const T* const* a, k_i64 ak, const B* b, k_i64 bk, T* c, k_i64 wide, k_i64 depth, bool adds) {
  constexpr int ONE = K_VECTOR / sizeof(T), C = W % (2 * ONE) ? ONE : 2 * ONE, U = R <= 2 ? 4 : R <= 4 ? 2 : 1;
  if (STEP) ak = STEP;
  if (PACKED) bk = W; /* compilers make better code of numbers that they know */
#pragma GCC unroll 1
  for (int at = 0; at < (ALL ? W : wide); at += C) {
    if constexpr (!ALL && C > ONE)
      if (wide - at <= ONE) {
        k_tile<T, B, R, 1, U>(a, ak, b + at, bk, c + at, W, depth, adds);
        break;
      }
    k_tile<T, B, R, C / ONE, U>(a, ak, b + at, bk, c + at, W, depth, adds);
  }
}
#endif
/* a tile of ROWS by W: as few register tiles as can be, all of about as many rows; LESS: there may be fewer rows, or columns; `fetch` is told of each
   row when its register tile begins */
template <class T, class B, int ROWS, bool LESS, int W, bool NARROW, int STEP, bool PACKED, class F>
KFN void k_product(const T* const* a, k_i64 ak, const B* b, k_i64 bk, T* c, k_i64 rows, k_i64 wide, k_i64 depth, bool adds, F fetch) {
  constexpr int LEAST = LESS ? 1 : ROWS / ((ROWS + K_TILE - 1) / K_TILE), MOST = LESS ? ROWS : LEAST + (ROWS % LEAST != 0);
  const k_i64 tiles = (rows + K_TILE - 1) / K_TILE;
  for (k_i64 tile = 0, at = 0; tile < tiles; ++tile) {
    const k_i64 here = (rows - at) / (tiles - tile);
    for (k_i64 row = at; row < at + here; ++row) fetch(row);
    switch (here) {
#define K_CASE(R) case R: \
  if constexpr (R >= LEAST && R <= MOST) k_columns<T, B, R, W, STEP, PACKED, !NARROW>(a + at, ak, b, bk, c + at * W, wide, depth, adds); \
  break;
      K_CASE(1) K_CASE(2) K_CASE(3) K_CASE(4) K_CASE(5) K_CASE(6)
#if K_TILE > 6
      K_CASE(7) K_CASE(8) K_CASE(9) K_CASE(10) K_CASE(11) K_CASE(12)
#endif
#undef K_CASE
    }
    at += here;
  }
}
#endif
"""
"""Text that stands once before the kernels that multiply."""


@dataclass(frozen=True)
class Direct:
    """A matrix that is read where it lies.

    :param element: the element at inner 0, and at column 0 for a right matrix
    :param stride: how far the next one along the contracted dimension is
    :param condition: where it does not hold there is zero
    """

    element: Load
    stride: Expression
    condition: Expression | None = None


def is_tile(product: MultiplyAccumulate) -> bool:
    """Whether a product has the shape of register tiles: all lanes side by side, whole vectors wide, floats of 4 or 8 bytes."""
    width = number(product.target.shape[1]) * product.across
    whole = width * product.target.dtype.itemsize % _VECTOR == 0
    return product.count == product.across and whole and product.target.dtype in (torch.float32, torch.float64)


def print_product(printer: KernelPrinter, product: MultiplyAccumulate) -> None:
    """Print a product for which `is_tile`."""
    _Product(printer, product).print()


class _Product:
    """Prints one product."""

    def __init__(self, printer: KernelPrinter, product: MultiplyAccumulate) -> None:
        self.printer = printer
        self.product = product
        self.kind = C_TYPES[product.target.dtype]
        self.height = number(product.target.shape[0])
        self.width = number(product.target.shape[1]) * product.across
        self.left = direct_left(product)
        self.right = direct_right(product)
        self.fetch = "[](k_i64) {}"

    def print(self) -> None:
        self.printer.block("", self._print)

    def _print(self) -> None:
        product, line, show = self.product, self.printer.line, self.printer.show
        line(f"const k_i64 k_rows = {self._clamped(product.rows, self.height)}, k_depth = {show(product.depth)};")
        if product.columns != Literal(self.width):
            line(f"const k_i64 k_width = {self._clamped(product.columns, self.width)};")
        step = self._step()
        if step is None:
            self._fetch()
            self._pointers(Literal(0))
            self._columns(Literal(0), "k_depth", str(product.adds).lower())
            return
        adds = "k_from > 0" if not product.adds else "true"
        if not product.adds:
            line(f"if (k_depth <= 0) __builtin_memset({product.target.name}, 0, sizeof({product.target.name}));")
        if self.left is None:
            line(f"alignas(64) {self.kind} k_left_tile[{self.height * step}];")

        def turn() -> None:
            line(f"const k_i64 k_here = k_depth - k_from < {step} ? k_depth - k_from : {step};")
            self._fetch("if (k_from == 0) ")
            self._pointers(Name("k_from"), step)
            self._columns(Name("k_from"), "k_here", adds)

        self.printer.block(f"for (k_i64 k_from = 0; k_from < k_depth; k_from += {step})", turn)

    def _fetch(self, first: str = "") -> None:
        """What comes into the cache while the sums of a row are computed: a store or a load that waits for memory stalls the next tile.

        :param first: where it holds, the sums begin
        """
        column, fetched = self.product.column.name, []
        for each in self.product.towards:
            place = self.printer.show(replaced(each, {column: Literal(0)}))
            whole = stride_of_load(each, column) == Literal(1)
            lines = range(0, self.width if whole else 1, _VECTOR // each.dtype.itemsize)
            how = "1" if is_written(self.printer.kernel, each.buffer) else "0, 2"
            fetched += [f"__builtin_prefetch(&{place} + {at}, {how});" for at in lines]
        if fetched:
            self.fetch = "k_fetch"
            self.printer.line(
                f"const auto k_fetch = [&](k_i64 {self.product.row.name}) {{ {first}{{ {' '.join(fetched)} }} }};"
            )

    def _clamped(self, size: Expression, most: int) -> str:
        """How many there are, the tile's own number at most."""
        return self.printer.show(size if size == Literal(most) else apply("min", Literal(most), size))

    def _step(self) -> int | None:
        """How much of the contracted dimension is taken at a time; None for all."""
        depth = self.product.depth
        most = int(depth.value) if isinstance(depth, Literal) else None
        if self.left is None:
            return _SCRATCH
        if self.right is None or (self.product.columns != Literal(self.width) and not self._padded()):
            return None if most is not None and most <= _SCRATCH else _SCRATCH
        if self.left.condition is not None:
            return None if most is not None and most <= _ZEROS else _ZEROS
        return None

    def _pointers(self, start: Expression, step: int = 0) -> None:
        """Where each row of the left matrix begins; what is computed comes into a scratch tile first."""
        product, line, show = self.product, self.printer.line, self.printer.show
        row, inner = product.row.name, product.inner.name
        line(f"const {self.kind}* k_left[{self.height}];")
        head = f"for (k_i64 {row} = 0; {row} < k_rows; ++{row})"
        if self.left is None:

            def fill() -> None:
                value = replaced(product.left, {inner: start + Name("k_k")})
                line(f"k_left[{row}] = k_left_tile + {row} * {step};")
                line("#pragma omp simd")
                line(
                    f"for (k_i64 k_k = 0; k_k < k_here; ++k_k) k_left_tile[{row} * {step} + k_k] = {self._cast(value)};"
                )

            self.printer.block(head, fill)
            return
        place = f"&{show(replaced(self.left.element, {inner: start}))}"
        if self.left.condition is not None:
            place = f"{show(self.left.condition)} ? {place} : (const {self.kind}*)k_zeros"
        line(f"{head} k_left[{row}] = {place};")
        self._approach(head)

    def _approach(self, head: str) -> None:
        """Rows that are looked up lie anywhere: their lines are all asked for before the first is waited for."""
        product, size = self.product, self.product.target.dtype.itemsize
        assert self.left is not None
        looked_up = any(isinstance(part, Load) for at in self.left.element.index for part in parts(at))
        if looked_up and isinstance(product.depth, Literal) and self.left.stride == Literal(1):
            lines = range(0, min(int(product.depth.value), _NEAR // size), _VECTOR // size)
            fetched = " ".join(f"__builtin_prefetch(k_left[{product.row.name}] + {at});" for at in lines)
            self.printer.line(f"{head} {{ {fetched} }}")

    def _columns(self, start: Expression, depth: str, adds: str) -> None:
        """The products; where there are fewer columns than the tile is wide, or the right matrix is computed, from a scratch tile of it."""
        product = self.product
        whole = product.columns == Literal(self.width)
        if self.right is not None and (whole or self._padded()):
            self._direct(start, depth, adds)
        elif self.right is None:
            self._scratch(start, depth, adds)
        else:
            self.printer.block(f"if (k_width == {self.width})", lambda: self._direct(start, depth, adds))
            self.printer.block("else", lambda: self._scratch(start, depth, adds))

    def _padded(self) -> bool:
        """Whether a right matrix has all of the tile's columns in memory, those beyond the last as well: its rows are just as long."""
        assert self.right is not None
        element = self.right.element
        return element.index[-1] == Literal(0) and element.buffer.shape[-1] == Literal(self.width)

    def _direct(self, start: Expression, depth: str, adds: str) -> None:
        assert self.right is not None
        place = replaced(self.right.element, {self.product.inner.name: start})
        source = place.dtype
        kind = self.kind if source == self.product.target.dtype else _LOADED[source]
        self._call(
            kind, f"(const {kind}*)&{self.printer.show(place)}", self.printer.show(self.right.stride), depth, adds
        )

    def _scratch(self, start: Expression, depth: str, adds: str) -> None:
        product, line = self.product, self.printer.line
        most = int(product.depth.value) if isinstance(product.depth, Literal) else _SCRATCH
        column = product.column.name
        line(f"alignas(64) {self.kind} k_right_tile[{max(min(most, _SCRATCH), 1) * self.width}];")
        value = self._cast(replaced(product.right, {product.inner.name: start + Name("k_k")}))

        def fill() -> None:
            line("#pragma omp simd")
            place = f"k_right_tile[k_k * {self.width} + {column}]"
            end = str(self.width) if product.columns == Literal(self.width) else "k_width"
            line(f"for (k_i64 {column} = 0; {column} < {end}; ++{column}) {place} = {value};")
            if end == "k_width":
                line(f"for (k_i64 {column} = k_width; {column} < {self.width}; ++{column}) {place} = 0;")

        self.printer.block(f"for (k_i64 k_k = 0; k_k < {depth}; ++k_k)", fill)
        self._call(self.kind, f"(const {self.kind}*)k_right_tile", str(self.width), depth, adds)

    def _call(self, kind: str, right: str, right_stride: str, depth: str, adds: str) -> None:
        stride = Literal(1) if self.left is None else self.left.stride
        less, narrow, packed = (
            str(each).lower()
            for each in (
                self.product.rows != Literal(self.height),
                self.product.columns != Literal(self.width),
                right_stride == str(self.width),
            )
        )
        wide = "k_width" if narrow == "true" else str(self.width)
        self.printer.line(
            f"k_product<{self.kind}, {kind}, {self.height}, {less}, {self.width}, {narrow}, {self._known(stride)}, {packed}>("
            f"k_left, {self.printer.show(stride)}, {right}, {right_stride}, {self.product.target.name}, k_rows, {wide}, {depth}, {adds}, "
            f"{self.fetch});"
        )

    def _known(self, stride: Expression) -> int:
        """The stride of the left matrix where tiles are compiled for it: one, and those of a block's own buffers, of which there are few."""
        own = self.left is not None and self.left.element.buffer.scope is not Scope.GLOBAL
        return int(stride.value) if isinstance(stride, Literal) and (own or stride == Literal(1)) else 0

    def _cast(self, value: Expression) -> str:
        return self.printer.show(cast(value, self.product.target.dtype))


def is_written(kernel: Kernel, buffer: Buffer) -> bool:
    """Whether a kernel stores to a buffer."""
    return any(isinstance(each, Store | Update) and each.buffer == buffer for each in walk(kernel.body))


def direct_left(product: MultiplyAccumulate) -> Direct | None:
    """The left matrix, if its rows can be read where they lie."""
    value, condition = product.left, None
    match value:
        case Apply("select", (asked, Load() as element, Literal(value=0))):
            value, condition = element, asked
    if not isinstance(value, Load) or value.dtype != product.target.dtype:
        return None
    if condition is not None and product.inner.name in names_in(condition):
        return None
    stride = stride_of_load(value, product.inner.name)
    if stride is None or names_in(stride) & {product.row.name, product.inner.name}:
        return None
    if condition is not None and stride != Literal(1):
        return None
    return Direct(value, stride, condition)


def direct_right(product: MultiplyAccumulate) -> Direct | None:
    """The right matrix, if vectors of its columns can be read where they lie."""
    value = product.right
    if isinstance(value, Apply) and value.function == "cast" and value.dtype == product.target.dtype:
        (value,) = value.operands
    if not isinstance(value, Load):
        return None
    kinds = {product.target.dtype, *(_LOADED if product.target.dtype == torch.float32 else ())}
    if value.dtype not in kinds or stride_of_load(value, product.column.name) != Literal(1):
        return None
    stride = stride_of_load(value, product.inner.name)
    if stride is None or names_in(stride) & {product.column.name, product.inner.name}:
        return None
    found = replaced(value, {product.column.name: Literal(0)})
    assert isinstance(found, Load)
    return Direct(found, stride)
