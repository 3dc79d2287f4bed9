/* @TITLE@: what follows from edges alone

   indices: whole numbers of 64 bits, one array each, in this order
@INDEX_LINES@
   They say the order in which edges are visited, where those of a node begin, and which pairs there are. @NAME@_edges_create finds that once for a
   set of edges; it makes the inputs of @NAME@_run from number @FIRST@ on, and the sizes that only edges decide. */
#ifndef SUTURE_@NAME@_EDGES_H
#define SUTURE_@NAME@_EDGES_H

#include "@NAME@.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { @NAME@_INDICES = @INDEX_COUNT@, @NAME@_DERIVED = @RESULT_COUNT@ };

typedef struct @NAME@_edges @NAME@_edges;

/* Look at edges. `sizes` are those of @NAME@_run: read are@READ_SIZES@; written are@WRITTEN_SIZES@. `*made` is NULL if that fails. */
@NAME@_API int @NAME@_edges_create(@NAME@_edges **made, const int64_t *const *indices, int64_t *sizes);

/* Set the inputs of @NAME@_run from number @FIRST@ on; `inputs` is the whole array. They are read while edges live, by any number of runs. */
@NAME@_API void @NAME@_edges_inputs(const @NAME@_edges *edges, @NAME@_buffer *inputs);

/* Let edges go; NULL is none. */
@NAME@_API void @NAME@_edges_destroy(@NAME@_edges *edges);

/* Why the last call of this thread failed. */
@NAME@_API const char *@NAME@_edges_error(void);

#ifdef __cplusplus
}
#endif

#endif
