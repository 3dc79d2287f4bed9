/* @TITLE@: what follows from edges alone. A list of steps on arrays of whole numbers, each of which is sorted by counting. */
#include "@NAME@_edges.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

namespace {

enum { INDICES = @INDEX_COUNT@, RESULTS = @RESULT_COUNT@, ARRAYS = @ARRAY_COUNT@, STEPS = @STEP_COUNT@, MEASURED = @MEASURED_COUNT@ };
enum { SORT, INVERSE, RUNS, UNIQUE, TILES, LOOKUP };

struct length { int size; int64_t more; };              /* sizes[size] + more, or more alone where size is -1 */
struct step { int what, left, right, made, second; length count; }; /* numbers of arrays; -1 is none */
struct measured { int size, array; };                   /* the size is the array's length */
struct array { const int64_t *data; int64_t *own; int64_t count; };

const char *const index_names[] = {@INDEX_NAMES@};
const length index_lengths[] = {@INDEX_LENGTHS@};
const step steps[] = {@STEPS@};
const int results[] = {@RESULTS@};
const measured sizes_measured[] = {@MEASURED@};

thread_local char message[256];

int fail(int code, const char *format, ...) {
  va_list given;
  va_start(given, format);
  vsnprintf(message, sizeof message, format, given);
  va_end(given);
  return code;
}

int64_t number(length count, const int64_t *sizes) { return (count.size < 0 ? 0 : sizes[count.size]) + count.more; }

int no_memory() { return fail(@NAME@_MEMORY, "there is not enough memory for the edges"); }

int64_t *room(int64_t count) {
  if (count < 0 || count > INT64_MAX / 64) return nullptr;
  return static_cast<int64_t *>(calloc(static_cast<size_t>(count) + 1, sizeof(int64_t)));
}

bool make(array &made, int64_t count) {
  made = {room(count), nullptr, count};
  made.own = const_cast<int64_t *>(made.data);
  return made.own != nullptr;
}

/* One more than the largest; -1 if one is negative. */
int64_t bound(const array &key) {
  int64_t most = 0;
  for (int64_t k = 0; k < key.count; ++k) {
    if (key.data[k] < 0) return -1;
    if (key.data[k] >= most) most = key.data[k] + 1;
  }
  return most;
}

/* The rows in `from` (all in order, where that is missing) sorted by a key, equals as they came. */
int sorted(const array &key, const int64_t *from, int64_t *to) {
  const int64_t range = bound(key);
  if (range < 0) return fail(@NAME@_ARGUMENT, "an index is negative");
  int64_t *first = room(range + 1);
  if (!first) return no_memory();
  for (int64_t k = 0; k < key.count; ++k) ++first[key.data[k] + 1];
  for (int64_t k = 0; k < range; ++k) first[k + 1] += first[k];
  for (int64_t k = 0; k < key.count; ++k) {
    const int64_t row = from ? from[k] : k;
    to[first[key.data[row]]++] = row;
  }
  free(first);
  return @NAME@_OK;
}

int order(const array &major, const array *minor, int64_t *to) {
  if (!minor) return sorted(major, nullptr, to);
  int64_t *by_minor = room(major.count);
  if (!by_minor) return no_memory();
  int code = sorted(*minor, nullptr, by_minor);
  if (code == @NAME@_OK) code = sorted(major, by_minor, to);
  free(by_minor);
  return code;
}

int unique(const array &major, const array *minor, array &first, array &rank) {
  array rows;
  if (!make(rows, major.count)) return no_memory();
  int code = order(major, minor, rows.own);
  if (code == @NAME@_OK && (!make(first, major.count) || !make(rank, major.count))) code = no_memory();
  int64_t pairs = 0;
  for (int64_t k = 0; code == @NAME@_OK && k < major.count; ++k) {
    const int64_t row = rows.data[k], last = k ? rows.data[k - 1] : 0;
    if (!k || major.data[row] != major.data[last] || (minor && minor->data[row] != minor->data[last])) first.own[pairs++] = row;
    rank.own[row] = pairs - 1;
  }
  first.count = pairs;
  free(rows.own);
  return code;
}

int runs(const array &key, int64_t count, array &made) {
  if (count < 1 || !make(made, count)) return no_memory();
  for (int64_t k = 0; k < key.count; ++k) {
    if (key.data[k] < 0 || key.data[k] >= count - 1)
      return fail(@NAME@_ARGUMENT, "an index is %lld where there are %lld", (long long)key.data[k], (long long)count - 1);
    ++made.own[key.data[k] + 1];
  }
  for (int64_t k = 0; k + 1 < count; ++k) made.own[k + 1] += made.own[k];
  return @NAME@_OK;
}

int tiles(const array &from, int64_t rows, array &starts, array &owner) {
  int64_t count = 0;
  for (int64_t k = 0; k + 1 < from.count; ++k) count += (from.data[k + 1] - from.data[k] + rows - 1) / rows;
  if (!make(starts, count + 1) || !make(owner, count)) return no_memory();
  int64_t at = 0;
  for (int64_t k = 0; k + 1 < from.count; ++k)
    for (int64_t row = from.data[k]; row < from.data[k + 1]; row += rows) {
      starts.own[at] = row;
      owner.own[at++] = k;
    }
  starts.own[count] = from.data[from.count - 1];
  return @NAME@_OK;
}

int lookup(const array &table, const array &at, array &made) {
  if (!make(made, at.count)) return no_memory();
  for (int64_t k = 0; k < at.count; ++k) {
    if (at.data[k] < 0 || at.data[k] >= table.count)
      return fail(@NAME@_ARGUMENT, "an index is %lld where there are %lld", (long long)at.data[k], (long long)table.count);
    made.own[k] = table.data[at.data[k]];
  }
  return @NAME@_OK;
}

}  // namespace

struct @NAME@_edges { array arrays[ARRAYS]; };

static int run(@NAME@_edges *edges, const step &each, const int64_t *sizes) {
  array *const all = edges->arrays;
  const array &left = all[each.left];
  const array *right = each.right < 0 ? nullptr : &all[each.right];
  array &made = all[each.made];
  switch (each.what) {
    case SORT:
      return make(made, left.count) ? order(left, right, made.own) : no_memory();
    case INVERSE:
      if (!make(made, left.count)) return no_memory();
      for (int64_t k = 0; k < left.count; ++k) made.own[left.data[k]] = k;
      return @NAME@_OK;
    case RUNS:
      return runs(left, number(each.count, sizes), made);
    case UNIQUE:
      return unique(left, right, made, all[each.second]);
    case TILES:
      return tiles(left, each.count.more, made, all[each.second]);
    default:
      return lookup(left, *right, made);
  }
}

extern "C" {

int @NAME@_edges_create(@NAME@_edges **made, const int64_t *const *indices, int64_t *sizes) {
  if (!made || !indices || !sizes) return fail(@NAME@_ARGUMENT, "a pointer is missing");
  *made = nullptr;
  @NAME@_edges *edges = static_cast<@NAME@_edges *>(calloc(1, sizeof(@NAME@_edges)));
  if (!edges) return no_memory();
  int code = @NAME@_OK;
  for (int k = 0; code == @NAME@_OK && k < INDICES; ++k) {
    const int64_t count = number(index_lengths[k], sizes);
    if (count < 0) code = fail(@NAME@_SIZE, "there cannot be %lld of %s", (long long)count, index_names[k]);
    else if (count && !indices[k]) code = fail(@NAME@_ARGUMENT, "%s is missing", index_names[k]);
    edges->arrays[k] = {indices[k], nullptr, count};
  }
  for (int k = 0; code == @NAME@_OK && k < STEPS; ++k) {
    code = run(edges, steps[k], sizes);
    for (int found = 0; code == @NAME@_OK && found < MEASURED; ++found)
      if (sizes_measured[found].array == steps[k].made || sizes_measured[found].array == steps[k].second)
        sizes[sizes_measured[found].size] = edges->arrays[sizes_measured[found].array].count;
  }
  if (code != @NAME@_OK) {
    @NAME@_edges_destroy(edges);
    return code;
  }
  *made = edges;
  return @NAME@_OK;
}

void @NAME@_edges_inputs(const @NAME@_edges *edges, @NAME@_buffer *inputs) {
  for (int k = 0; k < RESULTS; ++k) {
    const array &each = edges->arrays[results[k]];
    inputs[@FIRST@ + k] = {const_cast<int64_t *>(each.data), static_cast<size_t>(each.count) * sizeof(int64_t)};
  }
}

void @NAME@_edges_destroy(@NAME@_edges *edges) {
  for (int k = 0; edges && k < ARRAYS; ++k) free(edges->arrays[k].own);
  free(edges);
}

const char *@NAME@_edges_error(void) { return message; }
}
