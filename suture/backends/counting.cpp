/* Operators on whole numbers along edges. What sorts does so by digits, of key and row in one word of 64 bits; pairs are marked in a table of bits.

   Every function is what the operator of its name in suture/ir/operators says, number for number. One that returns -1 has written nothing that counts:
   its operands are not covered, or wrong. */
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>

namespace {

using i64 = int64_t;
using u64 = uint64_t;

constexpr int DIGITS = 6, WIDEST = 11; /* of 11 bits each: 66 */
constexpr i64 TABLE = i64(1) << 27;    /* so many pairs are marked at most */

struct Words {
  std::unique_ptr<u64[], decltype(&std::free)> held;
  explicit Words(i64 count) : held(static_cast<u64 *>(std::malloc(size_t(count + 1) * sizeof(u64))), &std::free) {}
  u64 *get() const { return held.get(); }
};

int bits(u64 most) {
  int count = 0;
  while (count < 64 && most >> count) ++count;
  return count;
}

/* The largest of some numbers; -1 if one is negative. */
i64 largest(const i64 *key, i64 count) {
  i64 most = 0;
  u64 all = 0; /* a sign stays in what is joined */
  for (i64 k = 0; k < count; ++k) {
    most = std::max(most, key[k]);
    all |= u64(key[k]);
  }
  return i64(all) < 0 ? -1 : most;
}

/* Keys above rows, sorted; equal keys as they came. The result lies in `a` or in `b`: null, if a key and a row need more bits than there are. */
u64 *sorted(const i64 *major, const i64 *minor, i64 count, u64 *a, u64 *b, int &low) {
  const i64 first = largest(major, count), second = minor ? largest(minor, count) : 0;
  if (!a || !b || first < 0 || second < 0) return nullptr;
  const int row = bits(u64(count)), less = minor ? bits(u64(second)) : 0, wide = bits(u64(first)) + less;
  low = row;
  if (wide + row > 64) return nullptr;
  bool rising = true;
  u64 last = 0;
  for (i64 k = 0; k < count; ++k) {
    const u64 key = minor ? u64(major[k]) << less | u64(minor[k]) : u64(major[k]);
    rising &= key >= last;
    last = key;
    a[k] = key << row | u64(k);
  }
  if (rising || !wide) return a;
  const int most = count < 4096 ? 8 : WIDEST, passes = (wide + most - 1) / most, digit = (wide + passes - 1) / passes;
  uint32_t wholes[DIGITS + 2][1 << WIDEST];
  for (int pass = 0; pass < passes; ++pass) std::memset(wholes[pass], 0, sizeof(uint32_t) << digit);
  const u64 mask = (u64(1) << digit) - 1;
  for (i64 k = 0; k < count; ++k)
    for (int pass = 0; pass < passes; ++pass) ++wholes[pass][a[k] >> (row + pass * digit) & mask];
  for (int pass = 0; pass < passes; ++pass) {
    const int shift = row + pass * digit;
    uint32_t *next = wholes[pass], total = 0;
    for (u64 k = 0; k <= mask; ++k) {
      const uint32_t here = next[k];
      next[k] = total;
      total += here;
    }
    for (i64 k = 0; k < count; ++k) b[next[a[k] >> shift & mask]++] = a[k];
    std::swap(a, b);
  }
  return a;
}

constexpr i64 MOST = i64(1) << 31; /* rows: places are counted in 32 bits */

template <typename T>
i64 look_up(const T *table, i64 rows, const i64 *at, i64 count, T *made) {
  for (i64 k = 0; k < count; ++k) {
    if (u64(at[k]) >= u64(rows)) return -1;
    made[k] = table[at[k]];
  }
  return 0;
}

} // namespace

extern "C" {

i64 sort_order(const i64 *major, const i64 *minor, i64 count, i64 *order) {
  if (count >= MOST) return -1;
  Words a(count), b(count);
  int low = 0;
  const u64 *found = sorted(major, minor, count, a.get(), b.get(), low);
  if (!found) return -1;
  const u64 mask = (u64(1) << low) - 1;
  for (i64 k = 0; k < count; ++k) order[k] = i64(found[k] & mask);
  return 0;
}

/* How many different keys there are. */
i64 unique_rows(const i64 *major, const i64 *minor, i64 count, i64 *first, i64 *rank) {
  if (count >= MOST) return -1;
  Words a(count), b(count);
  int low = 0;
  const u64 *found = sorted(major, minor, count, a.get(), b.get(), low);
  if (!found) return -1;
  const u64 mask = (u64(1) << low) - 1;
  i64 keys = 0;
  for (i64 k = 0; k < count; ++k) {
    const i64 row = i64(found[k] & mask);
    if (!k || found[k] >> low != found[k - 1] >> low) first[keys++] = row;
    rank[row] = keys - 1;
  }
  return keys;
}

i64 inverse_order(const i64 *order, i64 count, i64 *rank) {
  for (i64 k = 0; k < count; ++k) {
    if (u64(order[k]) >= u64(count)) return -1;
    rank[order[k]] = k;
  }
  return 0;
}

i64 run_pointers(const i64 *key, i64 count, i64 keys, i64 *p) {
  std::memset(p, 0, size_t(keys + 1) * sizeof(i64));
  for (i64 k = 0; k < count; ++k) {
    if (u64(key[k]) >= u64(keys)) return -1;
    ++p[key[k] + 1];
  }
  for (i64 k = 0; k < keys; ++k) p[k + 1] += p[k];
  return 0;
}

/* How many tiles there are; they are written, if there is room for them. */
i64 tile_runs(const i64 *p, i64 segments, i64 rows, i64 *tiles, i64 *types) {
  i64 made = 0;
  for (i64 k = 0; k < segments; ++k)
    for (i64 row = p[k]; row < p[k + 1]; row += rows, ++made)
      if (tiles) {
        tiles[made] = row;
        types[made] = k;
      }
  if (tiles) tiles[made] = p[segments];
  return made;
}

i64 different_ends(const i64 *type, const i64 *end, i64 count, i64 types, i64 *ends) {
  std::memset(ends, 0, size_t(types) * sizeof(i64));
  const i64 most = largest(end, count);
  if (most < 0 || (types && most + 1 > TABLE / types)) return -1;
  const i64 words = (types * (most + 1) + 63) / 64;
  std::unique_ptr<u64[], decltype(&std::free)> seen(static_cast<u64 *>(std::calloc(size_t(words + 1), sizeof(u64))), &std::free);
  if (!seen) return -1;
  for (i64 k = 0; k < count; ++k) {
    if (u64(type[k]) >= u64(types)) return -1;
    const u64 pair = u64(type[k]) * u64(most + 1) + u64(end[k]);
    u64 &word = seen[pair >> 6];
    const u64 bit = u64(1) << (pair & 63);
    ends[type[k]] += !(word & bit);
    word |= bit;
  }
  return 0;
}

/* How many rows there are. */
i64 meeting_rows(const uint8_t *side, i64 count, const i64 *first, i64 pairs, i64 together, i64 *row) {
  i64 made = 0;
  for (i64 k = 0; k < pairs; ++k) {
    if (u64(first[k]) >= u64(count)) return -1;
    row[made] = first[k];
    made += side[first[k]] == together;
  }
  for (i64 k = 0; k < count; ++k) {
    row[made] = k;
    made += side[k] != together;
  }
  return made;
}

i64 segment_sum(const i64 *x, const i64 *at, i64 count, i64 rows, i64 *made) {
  std::memset(made, 0, size_t(rows) * sizeof(i64));
  for (i64 k = 0; k < count; ++k) {
    if (u64(at[k]) >= u64(rows)) return -1;
    made[at[k]] += x[k];
  }
  return 0;
}

i64 embedding_1(const uint8_t *table, i64 rows, const i64 *at, i64 count, uint8_t *made) { return look_up(table, rows, at, count, made); }
i64 embedding_4(const uint32_t *table, i64 rows, const i64 *at, i64 count, uint32_t *made) { return look_up(table, rows, at, count, made); }
i64 embedding_8(const u64 *table, i64 rows, const i64 *at, i64 count, u64 *made) { return look_up(table, rows, at, count, made); }
}
