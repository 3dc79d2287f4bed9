/* @TITLE@: its tables, its memory, and the interface of @NAME@.h. */
#define _FILE_OFFSET_BITS 64
#include "@NAME@.h"

#include <math.h>

#include "arena.h"
#include "prelude.h"
#include "safetensors.h"

namespace {

/* ---- what the network is: shapes count in `dimensions`, memory in a table of `slots` ---- */

enum { SIZES = @SYMBOL_COUNT@, INPUTS = @INPUT_COUNT@, OUTPUTS = @OUTPUT_COUNT@, WEIGHTS = @WEIGHT_COUNT@, VALUES = @VALUE_COUNT@, DIMENSIONS = @DIMENSION_COUNT@, SLOTS = @SLOT_COUNT@, LOOKUPS = @LOOKUP_COUNT@, RANK = @RANK@ };

struct Shape {
  int element, rank, slot; /* bytes of an element; -1 where nothing reads the slot */
  short dimension[RANK + 1];
};
struct Weight {
  const char *name, *type;
  int rank, slot;
  int64_t shape[RANK + 1];
};

const char *const symbols[SIZES + 1] = {@SYMBOL_TEXTS@};
const @NAME@_tensor input_tensors[INPUTS + 1] = {
@INPUT_TENSORS@};
const @NAME@_tensor output_tensors[OUTPUTS + 1] = {
@OUTPUT_TENSORS@};
const Shape input_shapes[INPUTS + 1] = {
@INPUT_SHAPES@};
const Shape output_shapes[OUTPUTS + 1] = {
@OUTPUT_SHAPES@};
const Shape value_shapes[VALUES + 1] = {
@VALUE_SHAPES@};
const arena_life lives[VALUES + 1] = {
@LIVES@};
const Weight weights[WEIGHTS + 1] = {
@WEIGHTS@};
/* numbers in the outputs behind the network's own, which are above zero where an index lies outside of what it looks up */
const char *const lookups[LOOKUPS + 1] = {@LOOKUPS@};

/* Every dimension at some sizes; false where one of them divides by zero. */
bool dimensions(const k_i64 *k_n, k_i64 *k_d) {
  (void)k_n, (void)k_d;
@DIMENSIONS@
  return true;
}

/* What would be the largest or smallest of nothing at some sizes, or NULL. */
const char *emptied(const k_i64 *k_d) {
  (void)k_d;
@EXTREMES@
  return NULL;
}

/* ---- errors ---- */

thread_local char message[512];

int fail(int code, const char *format, ...) {
  va_list values;
  va_start(values, format);
  vsnprintf(message, sizeof message, format, values);
  va_end(values);
  return code;
}

/* ---- sizes ---- */

const int64_t LARGEST = INT32_MAX;

int measure(const int64_t *sizes, int64_t *found) {
  if (SIZES > 0 && !sizes) return fail(@NAME@_ARGUMENT, "there are no sizes");
  for (int k = 0; k < SIZES; ++k)
    if (sizes[k] < 0 || sizes[k] > LARGEST) return fail(@NAME@_SIZE, "the size %s is %lld", symbols[k], (long long)sizes[k]);
  if (!dimensions(sizes, found)) return fail(@NAME@_SIZE, "the network cannot have these sizes: one of them divides by zero");
  for (int k = 0; k < DIMENSIONS; ++k)
    if (found[k] < 0 || found[k] > INT64_MAX / 2) return fail(@NAME@_SIZE, "the network cannot have these sizes: a dimension would be %lld", (long long)found[k]);
  return @NAME@_OK;
}

/* The bytes of a value; -1 if they cannot be counted. */
int64_t bytes_of(const Shape &shape, const int64_t *found) {
  int64_t bytes = shape.element;
  for (int k = 0; k < shape.rank; ++k)
    if (!found[shape.dimension[k]]) return 0;
  for (int k = 0; k < shape.rank; ++k)
    if (__builtin_mul_overflow(bytes, found[shape.dimension[k]], &bytes)) return -1;
  return bytes;
}

int64_t query(const Shape *shapes, int count, int number, const int64_t *sizes, int64_t *shape) {
  int64_t found[DIMENSIONS + 1];
  if (number < 0 || number >= count) return fail(@NAME@_ARGUMENT, "there is no tensor %d", number), -1;
  if (measure(sizes, found)) return -1;
  for (int k = 0; shape && k < shapes[number].rank; ++k) shape[k] = found[shapes[number].dimension[k]];
  const int64_t bytes = bytes_of(shapes[number], found);
  if (bytes < 0) fail(@NAME@_SIZE, "a tensor of these sizes is too large");
  return bytes;
}

int shape_query(const Shape *shapes, int count, int number, const int64_t *sizes, int64_t *shape) {
  if (number < 0 || number >= count || !shape) return fail(@NAME@_ARGUMENT, "there is no tensor %d, or no room for its shape", number);
  return query(shapes, count, number, sizes, shape) < 0 ? (int)@NAME@_SIZE : (int)@NAME@_OK;
}

struct Plan {
  int64_t dimension[DIMENSIONS + 1], bytes[VALUES + 1], offset[VALUES + 1], length;
};

int make_plan(const int64_t *sizes, Plan *plan) {
  int by_size[VALUES + 1], by_place[VALUES + 1];
  if (const int code = measure(sizes, plan->dimension)) return code;
  if (const char *what = emptied(plan->dimension)) return fail(@NAME@_SIZE, "%s", what);
  for (int k = 0; k < VALUES; ++k)
    if ((plan->bytes[k] = bytes_of(value_shapes[k], plan->dimension)) < 0) return fail(@NAME@_SIZE, "a tensor of these sizes is too large");
  plan->length = arena_place(lives, plan->bytes, plan->offset, by_size, by_place, VALUES);
  if (plan->length < 0) return fail(@NAME@_SIZE, "the tensors of these sizes are too large together");
  return @NAME@_OK;
}

/* One buffer of a call: there, as long as it must be, and where its elements may be. */
int check_buffer(const @NAME@_tensor &tensor, const Shape &shape, const @NAME@_buffer &buffer, const Plan &plan) {
  const int64_t wanted = bytes_of(shape, plan.dimension);
  if (wanted < 0) return fail(@NAME@_SIZE, "%s would be too large", tensor.name);
  if ((uint64_t)wanted != buffer.bytes) return fail(@NAME@_SIZE, "%s has %llu bytes, %lld would be right", tensor.name, (unsigned long long)buffer.bytes, (long long)wanted);
  if (wanted && !buffer.data) return fail(@NAME@_ARGUMENT, "%s is missing", tensor.name);
  if ((uintptr_t)buffer.data % (uintptr_t)shape.element) return fail(@NAME@_ARGUMENT, "%s does not begin at a multiple of %d bytes", tensor.name, shape.element);
  return @NAME@_OK;
}

bool overlap(const @NAME@_buffer &a, const @NAME@_buffer &b) {
  const uintptr_t first = (uintptr_t)a.data, second = (uintptr_t)b.data;
  return a.bytes && b.bytes && first < second + b.bytes && second < first + a.bytes;
}

int check_buffers(const Plan &plan, const @NAME@_buffer *inputs, const @NAME@_buffer *outputs) {
  if ((INPUTS > 0 && !inputs) || (OUTPUTS > 0 && !outputs)) return fail(@NAME@_ARGUMENT, "there are no %s", inputs ? "outputs" : "inputs");
  for (int k = 0; k < INPUTS; ++k)
    if (const int code = check_buffer(input_tensors[k], input_shapes[k], inputs[k], plan)) return code;
  for (int k = 0; k < OUTPUTS; ++k) {
    if (const int code = check_buffer(output_tensors[k], output_shapes[k], outputs[k], plan)) return code;
    for (int other = 0; other < INPUTS + k; ++other)
      if (overlap(outputs[k], other < INPUTS ? inputs[other] : outputs[other - INPUTS]))
        return fail(@NAME@_ARGUMENT, "%s overlaps another buffer", output_tensors[k].name);
  }
  return @NAME@_OK;
}

/* Each weight's place in one block of memory, and the block's length; the file must hold what the network has. */
int place_weights(const st_file &file, int64_t *offsets, int64_t *length) {
  *length = 0;
  for (int k = 0; k < WEIGHTS; ++k) {
    const Weight &wanted = weights[k];
    const st_tensor *found = st_find(&file, wanted.name);
    if (!found) return fail(@NAME@_WEIGHTS, "the weights have no tensor %s", wanted.name);
    if (strcmp(found->dtype, wanted.type)) return fail(@NAME@_WEIGHTS, "the tensor %s is %s, %s would be right", wanted.name, found->dtype, wanted.type);
    bool fits = found->rank == wanted.rank;
    for (int d = 0; fits && d < wanted.rank; ++d) fits = found->shape[d] == wanted.shape[d];
    if (!fits) return fail(@NAME@_WEIGHTS, "the tensor %s has another shape than the network's", wanted.name);
    offsets[k] = *length;
    const int64_t bytes = arena_aligned((int64_t)(found->end - found->begin));
    if (bytes < 0 || __builtin_add_overflow(*length, bytes, length)) return fail(@NAME@_WEIGHTS, "the weights are too large");
  }
  return @NAME@_OK;
}

}  // namespace

@BODY@
/* ---- what is the same on every device ---- */

const char *@NAME@_error(void) { return message; }

const @NAME@_tensor *@NAME@_input(int number) { return number >= 0 && number < INPUTS ? &input_tensors[number] : NULL; }

const @NAME@_tensor *@NAME@_output(int number) { return number >= 0 && number < OUTPUTS ? &output_tensors[number] : NULL; }

int @NAME@_input_shape(int number, const int64_t *sizes, int64_t *shape) { return shape_query(input_shapes, INPUTS, number, sizes, shape); }

int @NAME@_output_shape(int number, const int64_t *sizes, int64_t *shape) { return shape_query(output_shapes, OUTPUTS, number, sizes, shape); }

int64_t @NAME@_input_bytes(int number, const int64_t *sizes) { return query(input_shapes, INPUTS, number, sizes, NULL); }

int64_t @NAME@_output_bytes(int number, const int64_t *sizes) { return query(output_shapes, OUTPUTS, number, sizes, NULL); }

int64_t @NAME@_memory(const int64_t *sizes) {
  Plan plan;
  return make_plan(sizes, &plan) ? -1 : plan.length;
}
