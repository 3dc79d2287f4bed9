/* @TITLE@

   inputs
@INPUTS@
   outputs
@OUTPUTS@
   sizes: an array of the numbers of these symbols, in this order
@SYMBOLS@

   An instance is used by one thread at a time; several instances may run side by side. A call that fails returns another code than @NAME@_OK and
   leaves a sentence for @NAME@_error(). Nothing here prints, exits or aborts. Tensors are dense, the last dimension innermost. */
#ifndef SUTURE_@NAME@_H
#define SUTURE_@NAME@_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define @NAME@_API
#else
#define @NAME@_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

enum {@SYMBOL_NAMES@ @NAME@_SIZES = @SYMBOL_COUNT@, @NAME@_INPUTS = @INPUT_COUNT@, @NAME@_OUTPUTS = @OUTPUT_COUNT@, @NAME@_RANK = @RANK@ };

enum {
  @NAME@_OK,
  @NAME@_ARGUMENT, /* a pointer is missing, two buffers overlap, or an index lies outside of what it looks up */
  @NAME@_WEIGHTS,  /* the weights cannot be read, or are not those of this network */
  @NAME@_SIZE,     /* sizes that the network cannot have, or a buffer of another length */
  @NAME@_MEMORY,   /* there is not enough memory */
  @NAME@_DEVICE    /* the device refused */
};

typedef struct @NAME@_net @NAME@_net;

typedef struct {
  void *data; /* of an input it is only read */
  size_t bytes;
} @NAME@_buffer;

typedef struct {
  const char *name;
  const char *type; /* F32, I64 and so on */
  size_t element;   /* bytes */
  int rank;
} @NAME@_tensor;

/* Make an instance of the weights in a file. `*made` is NULL if that fails. */
@NAME@_API int @NAME@_create(@NAME@_net **made, const char *weights);

/* Compute the outputs. Buffers are as long as @NAME@_input_bytes and @NAME@_output_bytes say, and none overlaps an output.
   Memory is kept from call to call; it grows when sizes do. */
@NAME@_API int @NAME@_run(@NAME@_net *net, const int64_t *sizes, const @NAME@_buffer *inputs, const @NAME@_buffer *outputs);
@DEVICE_RUN@
/* Let an instance go; NULL is none. */
@NAME@_API void @NAME@_destroy(@NAME@_net *net);

/* Why the last call of this thread failed. */
@NAME@_API const char *@NAME@_error(void);

/* What an input or output is; NULL if there is none of that number. */
@NAME@_API const @NAME@_tensor *@NAME@_input(int number);
@NAME@_API const @NAME@_tensor *@NAME@_output(int number);

/* The shape of an input or output at some sizes, at most @NAME@_RANK numbers. */
@NAME@_API int @NAME@_input_shape(int number, const int64_t *sizes, int64_t *shape);
@NAME@_API int @NAME@_output_shape(int number, const int64_t *sizes, int64_t *shape);

/* The bytes of an input or output at some sizes, and of the memory that a run works in; -1 if the network cannot have these sizes. */
@NAME@_API int64_t @NAME@_input_bytes(int number, const int64_t *sizes);
@NAME@_API int64_t @NAME@_output_bytes(int number, const int64_t *sizes);
@NAME@_API int64_t @NAME@_memory(const int64_t *sizes);

#ifdef __cplusplus
}
#endif

#endif
