/* Where values lie in an arena: the largest first, each at the lowest offset where nothing lies that lives when it does ("greedy by size",
   Pisarchyk and Lee 2020, Efficient Memory Management for Deep Neural Net Inference, section 5.1). C99, and C++ as well. */
#ifndef SUTURE_ARENA_H
#define SUTURE_ARENA_H

#include <stdint.h>

#define ARENA_ALIGNMENT 64

typedef struct {
  int first, last; /* the steps at which a value is needed, both included */
} arena_life;

/* The next multiple of the alignment; -1 beyond 2^62 bytes. */
static inline int64_t arena_aligned(int64_t bytes) {
  if (bytes < 0 || bytes > INT64_MAX / 2) return -1;
  return (bytes + ARENA_ALIGNMENT - 1) / ARENA_ALIGNMENT * ARENA_ALIGNMENT;
}

/* Offsets for `count` values of `bytes` bytes; `by_size` and `by_place` are room for as many numbers. The arena's length, or -1 beyond 2^62 bytes. */
static inline int64_t arena_place(const arena_life *lives, const int64_t *bytes, int64_t *offsets, int *by_size, int *by_place, int count) {
  int64_t length = 0;
  for (int k = 0; k < count; ++k) { /* sorted by insertion: the largest first, equals in order */
    int at = k;
    while (at > 0 && bytes[by_size[at - 1]] < bytes[k]) {
      by_size[at] = by_size[at - 1];
      --at;
    }
    by_size[at] = k;
  }
  for (int placed = 0; placed < count; ++placed) {
    const int mine = by_size[placed];
    const int64_t size = arena_aligned(bytes[mine]);
    int64_t offset = 0;
    if (size < 0) return -1;
    for (int k = 0; k < placed; ++k) { /* from the lowest: the first gap that is wide enough */
      const int other = by_place[k];
      if (lives[other].last < lives[mine].first || lives[mine].last < lives[other].first) continue;
      if (offset + size <= offsets[other]) break;
      const int64_t end = offsets[other] + arena_aligned(bytes[other]);
      if (end > offset) offset = end;
    }
    if (offset > INT64_MAX / 2 - size) return -1;
    offsets[mine] = offset;
    if (offset + size > length) length = offset + size;
    int at = placed;
    while (at > 0 && offsets[by_place[at - 1]] > offset) {
      by_place[at] = by_place[at - 1];
      --at;
    }
    by_place[at] = mine;
  }
  return length;
}

#endif
